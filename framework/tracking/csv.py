"""Metrics as a CSV file in the run directory."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from framework.record.run import RunRecord

FILE = "metrics.csv"


class CsvTracker:
    """Appends a line `step,metric,value` for each metric logged: long form, so that no column is known beforehand."""

    def __init__(self) -> None:
        self._file: Any = None

    def start(self, record: RunRecord, config: Mapping[str, Any]) -> None:
        path = record.folder / FILE
        new = not path.exists()
        self._file = path.open("a", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file)
        if new:
            self._rows.writerow(("step", "metric", "value"))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._rows.writerows((step, name, repr(float(value))) for name, value in metrics.items())
        self._file.flush()

    def finish(self, record: RunRecord) -> None:
        self._file.close()
        record.add_artifact("metrics", record.folder / FILE, "metrics")


def read_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the (step, value) points of each metric; a step logged twice (after a resume) counts once."""
    curves: dict[str, dict[int, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                curves.setdefault(row["metric"], {})[int(row["step"])] = float(row["value"])
            except (TypeError, ValueError):
                continue  # the last line of a killed process
    return {name: sorted(points.items()) for name, points in curves.items()}
