"""Whether an export is the model it was made from: outputs, decisions and the task's metric on the test split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torchmetrics import MetricCollection

from framework.data.batch_transforms import Batch
from framework.training.fit import Workbench
from framework.training.module import scalars
from framework.training.tasks import forward

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
INT8 = Tolerance(difference=0.1, agreement=0.99)


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


@dataclass
class Reference:
    """The outputs of a model on the test split, batch by batch, with which exports are compared.

    Args:
        bench: data and task.
        model: in evaluation mode.
    """

    bench: Workbench
    model: nn.Module

    def batches(self) -> Iterator[tuple[Batch, torch.Tensor]]:
        """Yield each batch of the test split, with the model's outputs."""
        for batch in self.bench.eval_loader("test"):
            with torch.inference_mode():
                yield batch, forward(self.model, self.bench.task, batch).float()

    def metrics(self) -> dict[str, float]:
        """Return the model's own metrics on the test split, by plain name."""
        metrics = self.bench.task.metrics()
        for batch, outputs in self.batches():
            self.bench.task.update(metrics, outputs, batch)
        return _plain(metrics)

    def compare(self, process: RuntimeProcess) -> Comparison:
        """Run an export on the whole test split."""
        task = self.bench.task
        metrics = task.metrics()
        largest = total = scale = 0.0
        elements = rows = equal = decisions = 0
        for batch, expected in self.batches():
            outputs = torch.from_numpy(process.run(model_inputs(task.inputs, batch)))
            task.update(metrics, outputs, batch)
            difference = (outputs - expected).abs().double()
            largest = float(np.maximum(largest, difference.max().item()))
            total += difference.sum().item()
            scale = max(scale, expected.abs().max().item())
            same = task.decide(outputs) == task.decide(expected)
            equal, decisions = equal + int(same.sum()), decisions + same.numel()
            elements, rows = elements + difference.numel(), rows + len(expected)
        relative = largest / scale if scale else largest
        return Comparison(_plain(metrics), largest, total / elements, relative, equal / decisions, rows)


def model_inputs(names: Sequence[str], batch: Batch, rows: int | None = None) -> list[npt.NDArray]:
    """Return a batch's model inputs as arrays: all its rows, or its first `rows` (repeated where it has fewer)."""
    arrays = [batch[name].numpy() for name in names]
    return arrays if rows is None else [np.resize(a, (rows, *a.shape[1:])) for a in arrays]


def _plain(metrics: MetricCollection) -> dict[str, float]:
    return {k.partition("/")[2]: v for k, v in scalars(metrics, "x").items()}
