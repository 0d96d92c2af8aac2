"""Whether an export is the model it was made from: outputs, decisions and the task's metric on the test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torchmetrics import MetricCollection

from framework.data.batch_transforms import Batch
from framework.errors import UserError
from framework.models.saved import SavedModel
from framework.training.tasks import Task, forward, scalars
from framework.training.workbench import Workbench

from .process import RuntimeProcess

Arrays = Sequence[npt.NDArray]


@dataclass(frozen=True)
class Tolerance:
    """How far an export may be from its model.

    Args:
        difference: largest difference of an output, over the largest magnitude of the outputs.
        agreement: smallest share of equal decisions.
    """

    difference: float
    agreement: float


FLOAT32 = Tolerance(difference=1e-3, agreement=0.999)
BFLOAT16 = Tolerance(difference=0.05, agreement=0.98)
INT8 = Tolerance(difference=0.1, agreement=0.99)


def tolerance_of(saved: SavedModel) -> Tolerance:
    """Return how far exports of a model may be from it, by the precision of its weights."""
    if saved.is_program:
        return INT8
    return BFLOAT16 if any(p.dtype is torch.bfloat16 for p in saved.model.parameters()) else FLOAT32


@dataclass(frozen=True)
class Comparison:
    """An export beside its model.

    Args:
        metrics: the task's metrics of the export on the test split.
        max_difference, mean_difference: of the outputs.
        relative_difference: the largest difference over the largest magnitude of the model's outputs.
        agreement: share of equal decisions.
        rows: how many rows were compared.
    """

    metrics: dict[str, float]
    max_difference: float
    mean_difference: float
    relative_difference: float
    agreement: float
    rows: int

    def complaint(self, tolerance: Tolerance) -> str | None:
        """Return what is out of tolerance, or None."""
        if not np.isfinite(self.max_difference):
            return "its outputs are not finite"
        if self.relative_difference > tolerance.difference:
            return (
                f"its outputs differ by up to {self.max_difference:.3g}, which is {self.relative_difference:.2%} of "
                f"their range; {tolerance.difference:.2%} is allowed"
            )
        if self.agreement < tolerance.agreement:
            return f"its decisions agree on {self.agreement:.2%} of rows; {tolerance.agreement:.2%} is wanted"
        return None


class _Tally:
    """Adds up how one export compares, batch by batch."""

    def __init__(self, task: Task) -> None:
        self.task, self.metrics = task, task.metrics()
        self.largest = self.total = self.scale = 0.0
        self.elements = self.rows = self.equal = self.decisions = 0

    def add(self, outputs: torch.Tensor, expected: torch.Tensor, batch: Batch) -> None:
        self.task.update(self.metrics, outputs, batch)
        difference = (outputs - expected).abs()
        self.largest = float(np.maximum(self.largest, difference.max().item()))  # a NaN stays
        self.scale = max(self.scale, expected.abs().max().item())
        self.total += difference.double().sum().item()
        same = self.task.decide(outputs) == self.task.decide(expected)
        self.equal, self.decisions = self.equal + int(same.sum()), self.decisions + same.numel()
        self.elements, self.rows = self.elements + difference.numel(), self.rows + len(expected)

    def comparison(self) -> Comparison:
        return Comparison(
            metrics=_plain(self.metrics),
            max_difference=self.largest,
            mean_difference=self.total / self.elements,
            relative_difference=self.largest / self.scale if self.scale else self.largest,
            agreement=self.equal / self.decisions,
            rows=self.rows,
        )


def compare(
    bench: Workbench, model: nn.Module, processes: Mapping[str, RuntimeProcess]
) -> tuple[dict[str, float], dict[str, Comparison], dict[str, str]]:
    """Run a model and its exports on the whole test split.

    Args:
        bench: data and task.
        model: in evaluation mode.
        processes: the exports, by name.

    Returns:
        the model's own metrics by plain name, a comparison for each export, and what went wrong where none was
        possible.
    """
    task = bench.task
    own, tallies, refused = task.metrics(), {name: _Tally(task) for name in processes}, dict[str, str]()
    for batch in bench.eval_loader("test"):
        inputs = model_inputs(task.inputs, batch)
        with torch.inference_mode():
            expected = forward(model, task, batch).float()
            task.update(own, expected, batch)
            for name, tally in list(tallies.items()):
                try:
                    tally.add(torch.from_numpy(processes[name].run(inputs)), expected, batch)
                except UserError as error:
                    refused[name] = str(error)
                    del tallies[name]
    return _plain(own), {name: tally.comparison() for name, tally in tallies.items()}, refused


def model_inputs(names: Sequence[str], batch: Batch, rows: int | None = None) -> list[npt.NDArray]:
    """Return a batch's model inputs as arrays: all its rows, or its first `rows` (repeated where it has fewer)."""
    arrays = [batch[name].numpy() for name in names]
    return arrays if rows is None else [np.resize(a, (rows, *a.shape[1:])) for a in arrays]


def _plain(metrics: MetricCollection) -> dict[str, float]:
    return {k.partition("/")[2]: v for k, v in scalars(metrics, "x").items()}
