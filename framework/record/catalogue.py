"""Finding runs, and comparing them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from framework.errors import UserError, did_you_mean

from .run import RESERVED_NAMES, RUN_FILE, RunRecord


def find_runs(outputs: Path) -> list[RunRecord]:
    """Return all readable runs below a folder, newest first."""
    files = [f for f in outputs.glob(f"*/*/{RUN_FILE}") if f.parent.parent.name not in RESERVED_NAMES]
    runs = []
    for file in files:
        try:
            runs.append(RunRecord(file.parent))
        except UserError:
            continue
    return sorted(runs, key=lambda r: (r["created"], r.folder.name), reverse=True)


def open_run(text: str, outputs: Path) -> RunRecord:
    """Return the run that a path, a folder name or a run id names.

    Raises:
        UserError: when there is none, with near misses.
    """
    for path in (Path(text), outputs / text):
        if (path / RUN_FILE).exists():
            return RunRecord(path)
    runs = find_runs(outputs)
    named = [r for r in runs if text in (r["id"], r.folder.name, f"{r['name']}/{r.folder.name}")]
    if not named:
        hint = did_you_mean(text, [r.folder.name for r in runs])
        raise UserError(f"there is no run `{text}`.{hint} `python -m framework runs` lists runs")
    return named[0]


def status_of(record: RunRecord) -> str:
    """Return the status, telling a run that died without a word (`lost`) from one that is running."""
    if record["status"] != "running":
        return record["status"]
    same_host = record.get("host") in (None, os.uname().nodename)
    return "lost" if same_host and not _alive(record.get("pid")) else "running"


def _alive(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def main_metric(record: RunRecord) -> tuple[str, float] | None:
    """Return the metric by which the run is judged, on the best data it was measured on."""
    name = record.get("main_metric")
    for split in ("test", "val"):
        if name and (key := f"{split}/{name}") in record.metrics:
            return key, record.metrics[key]
    return None


def duration(record: RunRecord) -> float:
    """Return the seconds that all stages took together."""
    return sum(stage.get("seconds", 0.0) for stage in record["stages"].values())


def age(record: RunRecord) -> float:
    """Return the seconds since the run was created."""
    return (datetime.now().astimezone() - datetime.fromisoformat(record["created"])).total_seconds()


def flat_config(config: Any) -> dict[str, Any]:
    """Return a config as one flat mapping from dotted keys to scalars."""
    return dict(flatten(OmegaConf.to_container(config, resolve=True)))


def config_of(record: RunRecord) -> Any:
    """Return the run's resolved config."""
    file = record.folder / "config.yaml"
    if not file.exists():
        raise UserError(f"`{record.folder}` has no config.yaml")
    return OmegaConf.load(file)


def config_differences(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ, with both values; a key that one lacks is shown as `-`."""
    left, right = flat_config(a), flat_config(b)
    keys = [*left, *(k for k in right if k not in left)]
    return {k: (left.get(k, "-"), right.get(k, "-")) for k in keys if left.get(k, "-") != right.get(k, "-")}


def flatten(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the scalars (and lists, as JSON) of nested mappings, by dotted keys."""
    if isinstance(node, dict) and node:
        for name, value in node.items():
            yield from flatten(value, f"{path}.{name}" if path else str(name))
    else:
        yield path, json.dumps(node) if isinstance(node, (list, dict)) else node
