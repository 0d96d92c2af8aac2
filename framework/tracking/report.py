"""The stage `report`: one self-contained HTML file that shows what was run and what came of it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from framework.record.catalogue import duration
from framework.record.console import bytes_text, duration_text, say
from framework.record.experiment import Experiment
from framework.record.files import write_atomic
from framework.record.run import RunRecord
from framework.record.summary import model_columns, model_rows

from .csv import FILE as METRICS_FILE
from .csv import read_curves
from .html import render_page
from .plots import as_png, as_svg, plot_confusion, plot_curves, plot_models, plot_sensitivity, plot_trials

REPORT = "report.html"
COMPRESS_COLUMNS = {
    "pass": ("pass", str),
    "parameters": ("parameters", "{:,}".format),
    "nonzero": ("non-zero", "{:,}".format),
    "bytes": ("size", bytes_text),
    "macs": ("multiply-adds a row", "{:,}".format),
}


def run(experiment: Experiment) -> None:
    """Leave `report.html`, and its pictures as `pictures/*.png`."""
    record = experiment.record
    pictures = _draw(experiment)
    for name, figure in pictures.items():
        file = experiment.folder / "pictures" / f"{name}.png"
        write_atomic(file, as_png(figure))
        record.add_artifact(f"pictures/{name}", file, "picture")
    html = render(experiment, {name: as_svg(figure) for name, figure in pictures.items()})
    write_atomic(experiment.folder / REPORT, html)
    record.add_artifact("report", experiment.folder / REPORT, "report")
    say(f"  {REPORT}: {bytes_text(len(html.encode()))}")


def _draw(experiment: Experiment) -> dict[str, Any]:
    record, metric = experiment.record, experiment.record.get("main_metric", "")
    pictures: dict[str, Any] = {}
    file = next((f for r in _records(experiment) if (f := r.folder / METRICS_FILE).exists()), None)
    curves = read_curves(file) if file else {}
    if any(name in curves for name in ("train/loss", f"val/{metric}")):
        pictures["curves"] = plot_curves(curves, f"val/{metric}")
    if confusion := experiment.find_artifact("evaluation/confusion"):
        matrix = json.loads(confusion.read_text(encoding="utf-8"))
        pictures["confusion"] = plot_confusion(matrix["values"], matrix["labels"])
    rows = model_rows(record)
    if sum("latency_b1" in row for row in rows) > 1:
        pictures["models"] = plot_models(rows, metric)
    if sensitivity := record["tables"].get("sensitivity"):
        pictures["sensitivity"] = plot_sensitivity(sensitivity, metric)
    if trials := [row for row in record["tables"].get("auto", []) if "latency_ms" in row]:
        pictures["auto"] = plot_trials(trials, f"val/{metric}")
    return pictures


def _records(experiment: Experiment) -> list[RunRecord]:
    return [r for r in (experiment.record, experiment.earlier) if r is not None]


def _texts(experiment: Experiment) -> list[dict[str, str]]:
    found: dict[str, Path] = {}
    for record in reversed(_records(experiment)):
        for name, artifact in record.artifacts.items():
            if artifact.kind == "text":
                found[name] = record.folder / artifact.path
    return [json.loads(path.read_text(encoding="utf-8")) for path in found.values()]


def render(experiment: Experiment, pictures: dict[str, str]) -> str:
    """Return the report's HTML.

    Args:
        experiment: whose record is shown.
        pictures: `<svg>` elements by name.
    """
    record, cfg = experiment.record, experiment.config
    rows = model_rows(record)
    environment = record.get("environment", {})
    data = record.get("data")
    facts = {
        "run": f"{record['name']} {record['id']}, {record['created'].replace('T', ' ')}",
        "tags": ", ".join(cfg.tags),
        "data": f"{data['name']}/{data['version']}" if data else "",
        "rows": ", ".join(f"{k} {v:,}" for k, v in data["rows"].items()) if data else "",
        "strategy": ", ".join(f"{k} {v}" for k, v in record.get("effective", {}).items()),
        "stages": ", ".join(
            f"{n} {duration_text(s['seconds'])}" for n, s in record["stages"].items() if "seconds" in s
        ),
        "time": duration_text(duration(record)),
        "continues": str(cfg.from_run or ""),
        "python": environment.get("python", ""),
        "packages": ", ".join(f"{k} {v}" for k, v in environment.get("packages", {}).items()),
        "machine": ", ".join(str(v) for k, v in environment.get("machine", {}).items() if v and k != "memory_bytes"),
        "commit": _commit(environment.get("git")),
    }
    overrides = (experiment.folder / "overrides.txt").read_text(encoding="utf-8").splitlines()
    return render_page(
        "report.html.j2",
        title=f"{record['name']} {record['id']}",
        description=cfg.description,
        facts={k: v for k, v in facts.items() if v},
        pictures=pictures,
        texts=_texts(experiment),
        model_table=_cells(rows, {k: (c.title, c.text) for k, c in model_columns(record, rows).items()}),
        compress_table=_compress_cells(record),
        metrics=sorted(record.metrics.items()),
        config=(experiment.folder / "config.yaml").read_text(encoding="utf-8"),
        commands=[
            f"python run.py {' '.join(map(shlex.quote, overrides))}".strip(),
            f"python -m framework runs rerun {record.folder}",
        ],
    )


def _commit(git: dict[str, Any] | None) -> str:
    return f"{git['commit'][:12]}{' with uncommitted changes (git.diff)' if git['dirty'] else ''}" if git else ""


def _cells(rows: list[dict[str, Any]], columns: dict[str, Any]) -> list[list[str]]:
    if not rows:
        return []
    heading = [title for title, _ in columns.values()]
    return [
        heading,
        *([text(row[k]) if row.get(k) is not None else "" for k, (_, text) in columns.items()] for row in rows),
    ]


def _compress_cells(record: RunRecord) -> list[list[str]]:
    rows = record["tables"].get("compress", [])
    monitor = next((k for row in rows for k in row if k.startswith("val/")), None)
    extra = {monitor: (monitor, "{:.4f}".format)} if monitor else {}
    return _cells(rows, {**COMPRESS_COLUMNS, **extra, "seconds": ("time", duration_text)})
