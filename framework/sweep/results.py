"""What a sweep leaves behind: its trials as tables, its best points as options of the group `recipe`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from framework.record.files import write_atomic

from .objectives import Objective
from .trials import Trial


def trial_rows(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[dict[str, Any]]:
    """Return a row for each trial: its number, state, objectives, values, times, run and error."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.values))
    return [
        {
            "number": trial.number,
            "state": str(trial.state),
            **{o.metric: trial.objectives[i] if i < len(trial.objectives) else None for i, o in enumerate(objectives)},
            **{name: trial.values.get(name) for name in names},
            "started": trial.started or None,
            "seconds": round(trial.seconds, 3) if trial.ended else None,
            "slot": trial.slot,
            "controller": trial.controller,
            "taken_from": trial.taken_from,
            "run": trial.run,
            "error": trial.error,
        }
        for trial in sorted(trials, key=lambda t: t.number)
    ]


def write_tables(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write `trials.csv`, and `trials.parquet` where pyarrow is installed; returns their names."""
    columns = list(rows[0]) if rows else ["number", "state"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(folder / "trials.csv", text.getvalue())
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return ["trials.csv"]
    mixed = [c for c in columns if len({type(r[c]) for r in rows if r[c] is not None} - {int, float}) > 0]
    plain = [{k: str(v) if k in mixed and v is not None else v for k, v in row.items()} for row in rows]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(plain), buffer)
    write_atomic(folder / "trials.parquet", buffer.getvalue())
    return ["trials.csv", "trials.parquet"]


def write_best(
    folder: Path,
    best: Sequence[Trial],
    overrides: Mapping[int, Sequence[str]],
    loader: ConfigLoader,
    base: str | None,
) -> str:
    """Write the best points as `recipe/best.yaml` (with several objectives also `best_<number>.yaml`).

    Args:
        folder: the sweep's.
        best: the best trials.
        overrides: of each, by its number.
        loader: knows what is a group.
        base: the recipe where none was typed.

    Returns:
        what to type to run the first again, but for `--config-dir`.
    """
    extra: list[str] = []
    for index, trial in enumerate(best):
        text, beside = as_recipe(
            overrides[trial.number], loader, f"trial {trial.number} of the sweep {folder.name}", base
        )
        if len(best) > 1:
            write_atomic(folder / "recipe" / f"best_{trial.number}.yaml", text)
        if index == 0:
            write_atomic(folder / "recipe" / "best.yaml", text)
            extra = beside
    return " ".join(["recipe=best", *extra])


def as_recipe(overrides: Sequence[str], loader: ConfigLoader, title: str, base: str | None) -> tuple[str, list[str]]:
    """Return overrides of the recipe `base` as an option of the group `recipe`, and those that none can express."""
    defaults: list[Any] = []
    values: dict[str, Any] = {}
    beside: list[str] = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if key == "recipe" and not override.is_delete():
            base = str(override.value())
        elif override.is_delete() or override.package is not None:
            beside.append(override.input_line or "")
        elif loader.get_group_options(key):
            option = _plain(override)
            defaults.append({f"/{key}" if override.is_add() else f"override /{key}": option})
        else:
            node = values
            *path, last = key.split(".")
            for part in path:
                node = node.setdefault(part, {})
            node[last] = _plain(override)
    document = {"defaults": [*([base] if base else []), *defaults, "_self_"], **values}
    body = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    return f"# @package _global_\n# {title}\n{body}", beside


def _plain(override: Override) -> Any:
    """Return the value of an override as YAML would have it."""
    return yaml.safe_load(yaml.safe_dump(_unquoted(override.value())))


def _unquoted(value: Any) -> Any:
    text = getattr(value, "text", None)
    if text is not None:
        return text
    if isinstance(value, list):
        return [_unquoted(v) for v in value]
    if isinstance(value, dict):
        return {str(getattr(k, "text", k)): _unquoted(v) for k, v in value.items()}
    return value
