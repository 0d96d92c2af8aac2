"""What a sweep looks for: metrics of the run record, each with a direction, and bounds that others must keep."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from framework.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from optuna.study import StudyDirection


@dataclass(frozen=True)
class Objective:
    """A metric of the run record (`val/accuracy`, `export/onnx/latency_ms_b1`), and which way is better."""

    metric: str
    maximize: bool

    @property
    def direction(self) -> str:
        """`maximize` or `minimize`."""
        return "maximize" if self.maximize else "minimize"

    @property
    def optuna_direction(self) -> StudyDirection:
        """The direction as Optuna has it."""
        from optuna.study import StudyDirection

        return StudyDirection.MAXIMIZE if self.maximize else StudyDirection.MINIMIZE

    def value(self, metrics: Mapping[str, float]) -> float:
        """Return the metric of a run.

        Raises:
            UserError: when it has none, or it is not finite.
        """
        if self.metric not in metrics:
            near = did_you_mean(self.metric, list(metrics)) or f" It has {', '.join(sorted(metrics)) or 'none'}."
            raise UserError(f"the run has no metric `{self.metric}`.{near}")
        value = metrics[self.metric]
        if not math.isfinite(value):
            raise UserError(f"`{self.metric}` is {value}")
        return value


@dataclass(frozen=True)
class Constraint:
    """A bound that a metric of a run must keep, as in `export/onnx/bytes <= 200_000`."""

    metric: str
    upper: bool
    bound: float

    def __str__(self) -> str:
        return f"{self.metric} {'<=' if self.upper else '>='} {self.bound:g}"

    def violation(self, metrics: Mapping[str, float]) -> float:
        """Return by how much a run breaks it; 0 or less where it keeps it, infinite where the metric is missing."""
        value = metrics.get(self.metric, math.nan)
        if math.isnan(value):
            return math.inf
        return value - self.bound if self.upper else self.bound - value


def read_objective(node: Any, where: str) -> Objective:
    """Read `{metric: ..., direction: maximize | minimize}`.

    Raises:
        UserError: when it is something else.
    """
    directions = ("maximize", "minimize")
    if not isinstance(node, Mapping) or set(node) != {"metric", "direction"} or node["direction"] not in directions:
        raise UserError(f"{where}: takes {{metric: NAME, direction: maximize | minimize}}, and not `{node}`")
    return Objective(str(node["metric"]), node["direction"] == "maximize")


_CONSTRAINT = re.compile(r"\s*(\S+)\s*(<=|>=)\s*(\S+)\s*")


def read_constraint(text: str, where: str) -> Constraint:
    """Read `METRIC <= NUMBER` or `METRIC >= NUMBER`.

    Raises:
        UserError: when it is something else.
    """
    match = _CONSTRAINT.fullmatch(text)
    try:
        assert match is not None
        return Constraint(match[1], match[2] == "<=", float(match[3]))
    except (AssertionError, ValueError):
        raise UserError(f"{where}: takes `METRIC <= NUMBER` or `METRIC >= NUMBER`, and not `{text}`") from None


def dominates(a: Sequence[float], b: Sequence[float], objectives: Sequence[Objective]) -> bool:
    """Return whether values `a` are nowhere worse than `b`, and somewhere better."""
    signed = [(x, y) if o.maximize else (-x, -y) for x, y, o in zip(a, b, objectives, strict=True)]
    return all(x >= y for x, y in signed) and any(x > y for x, y in signed)


def best_of(values: Mapping[int, Sequence[float]], objectives: Sequence[Objective]) -> list[int]:
    """Return the numbers of the trials that none dominates, the first of equals; with one objective, of the best."""
    front: list[int] = []
    for number, found in values.items():
        if any(dominates(values[n], found, objectives) or tuple(values[n]) == tuple(found) for n in front):
            continue
        front = [n for n in front if not dominates(found, values[n], objectives)] + [number]
    return front
