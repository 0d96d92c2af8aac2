"""What a training is asked for, and what it gave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

LogMetrics = Callable[[dict[str, float], int], None]


@dataclass(frozen=True)
class Job:
    """What is to be trained, beside the experiment's config; see `fit`."""

    what: str
    length: float = 1.0
    learning_rate_scale: float = 1.0
    resume: bool = False


@dataclass(frozen=True)
class Fitted:
    """What a training gave: validation metrics of the best weights, steps (and how many of them left their update out),
    the precision that was really used."""

    metrics: dict[str, float]
    steps: int
    skipped: int
    precision: str
    device: str
