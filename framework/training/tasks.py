"""What a model is for: which fields it takes, its loss, its metrics, and what to show of it.

To add one, write a class with the attributes and methods of `Task` and a YAML in `conf/task`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanMetric, MeanSquaredError, Metric, MetricCollection, R2Score
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MultilabelF1Score,
    MultilabelPrecision,
    MultilabelRecall,
)

from framework.data.batch_transforms import Batch


class Task(Protocol):
    """The contract between a model's outputs and everything that judges them.

    Attributes:
        inputs: the fields that are the model's arguments, in order.
        monitor: the metric by which checkpoints and runs are compared.
        mode: whether `monitor` is better when larger (`max`) or smaller (`min`).
    """

    inputs: Sequence[str]
    monitor: str
    mode: Literal["max", "min"]

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the scalar to be minimised."""

    def metrics(self) -> MetricCollection:
        """Return fresh metrics; scalars are recorded, matrices are shown in the report."""

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        """Add a batch to the metrics."""

    def decide(self, outputs: Tensor) -> Tensor:
        """Return the decision that outputs amount to (a class, a token), for counting agreement."""

    def illustrate(self, model: nn.Module, batch: Batch) -> Mapping[str, str]:
        """Return texts to be shown in the report, by title."""


LossFunction = Callable[[Tensor, Tensor], Tensor]
"""From outputs and targets, as the task's own loss takes them, to a scalar."""


def collection(own: Mapping[str, Metric], further: Mapping[str, Metric]) -> MetricCollection:
    """Return a task's own metrics and further ones, fresh.

    Raises:
        ValueError: when a further one has the name of an own one.
    """
    if taken := own.keys() & further.keys():
        raise ValueError(f"further_metrics: the task has a metric `{min(taken)}` of its own; give another name")
    metrics: dict[str, Metric | MetricCollection] = {**own, **{name: m.clone() for name, m in further.items()}}
    return MetricCollection(metrics, compute_groups=False)


def forward(model: nn.Module, task: Task, batch: Batch) -> Tensor:
    """Return the model's outputs for a batch."""
    return model(*(batch[name] for name in task.inputs))


@dataclass
class Classification:
    """One of several classes for each row.

    Args:
        classes: the number of classes.
        inputs: fields given to the model.
        target: field of the right class, int64 [batch].
        label_smoothing: share of the target spread over all classes while training.
        further_metrics: beside its own, by name; each is given the outputs and targets that the loss takes.
        loss_function: another loss, of outputs and targets.
        monitor, mode: see `Task`.
    """

    classes: int
    inputs: Sequence[str] = ("image",)
    target: str = "label"
    label_smoothing: float = 0.0
    monitor: str = "accuracy"
    mode: Literal["max", "min"] = "max"
    further_metrics: Mapping[str, Metric] = field(default_factory=dict)
    loss_function: LossFunction | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, and it is {self.label_smoothing}")

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        if self.loss_function is not None:
            return self.loss_function(outputs.float(), batch[self.target])
        return F.cross_entropy(outputs.float(), batch[self.target], label_smoothing=self.label_smoothing)

    def metrics(self) -> MetricCollection:
        own: dict[str, Metric] = {
            "accuracy": MulticlassAccuracy(self.classes, average="micro"),
            "loss": MeanMetric(),
            "confusion": MulticlassConfusionMatrix(self.classes),
        }
        return collection(own, self.further_metrics)

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        target = batch[self.target]
        metrics["accuracy"].update(outputs, target)
        metrics["confusion"].update(outputs, target)
        metrics["loss"].update(F.cross_entropy(outputs.float(), target), weight=len(target))
        for name in self.further_metrics:
            metrics[name].update(outputs, target)

    def decide(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(dim=-1)

    def illustrate(self, model: nn.Module, batch: Batch) -> Mapping[str, str]:
        return {}


@dataclass
class MultiLabel:
    """Any number of classes for each row.

    Args:
        classes: the number of classes.
        inputs: fields given to the model.
        target: field of zeros and ones, [batch, classes].
        threshold: the probability from which on a class counts as found.
        further_metrics: beside its own, by name; each is given the outputs and targets that the loss takes.
        loss_function: another loss, of outputs and targets.
        monitor, mode: see `Task`.
    """

    classes: int
    inputs: Sequence[str] = ("image",)
    target: str = "labels"
    threshold: float = 0.5
    monitor: str = "f1"
    mode: Literal["max", "min"] = "max"
    further_metrics: Mapping[str, Metric] = field(default_factory=dict)
    loss_function: LossFunction | None = None

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        loss = F.binary_cross_entropy_with_logits if self.loss_function is None else self.loss_function
        return loss(outputs.float(), batch[self.target].float())

    def metrics(self) -> MetricCollection:
        own: dict[str, Metric] = {
            "f1": MultilabelF1Score(self.classes, self.threshold, average="micro"),
            "precision": MultilabelPrecision(self.classes, self.threshold, average="micro"),
            "recall": MultilabelRecall(self.classes, self.threshold, average="micro"),
            "loss": MeanMetric(),
        }
        return collection(own, self.further_metrics)

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        for name in ("f1", "precision", "recall", *self.further_metrics):
            metrics[name].update(outputs.float().sigmoid(), batch[self.target].int())
        metrics["loss"].update(self.loss(outputs, batch), weight=len(outputs))

    def decide(self, outputs: Tensor) -> Tensor:
        return outputs.float().sigmoid() >= self.threshold

    def illustrate(self, model: nn.Module, batch: Batch) -> Mapping[str, str]:
        return {}


@dataclass
class Regression:
    """Numbers for each row.

    Args:
        inputs: fields given to the model.
        target: field of the right numbers, [batch, outputs] or, for one output, [batch].
        loss_name: the loss.
        decimals: to which two outputs must round alike to count as the same decision.
        further_metrics: beside its own, by name; each is given the outputs and targets that the loss takes.
        loss_function: another loss, of outputs and targets.
        monitor, mode: see `Task`.
    """

    inputs: Sequence[str] = ("x",)
    target: str = "y"
    loss_name: Literal["mse", "mae", "huber"] = "mse"
    decimals: int = 2
    monitor: str = "rmse"
    mode: Literal["max", "min"] = "min"
    further_metrics: Mapping[str, Metric] = field(default_factory=dict)
    loss_function: LossFunction | None = None

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        losses: dict[str, LossFunction] = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}
        return (self.loss_function or losses[self.loss_name])(outputs.float(), self._target(outputs, batch))

    def _target(self, outputs: Tensor, batch: Batch) -> Tensor:
        return batch[self.target].float().reshape(outputs.shape)

    def metrics(self) -> MetricCollection:
        own: dict[str, Metric] = {
            "rmse": MeanSquaredError(squared=False),
            "mae": MeanAbsoluteError(),
            "r2": R2Score(),
            "loss": MeanMetric(),
        }
        return collection(own, self.further_metrics)

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        target = self._target(outputs, batch)
        for name in ("rmse", "mae", "r2", *self.further_metrics):
            metrics[name].update(outputs.float().flatten(), target.flatten())
        metrics["loss"].update(self.loss(outputs, batch), weight=len(outputs))

    def decide(self, outputs: Tensor) -> Tensor:
        return outputs.float().round(decimals=self.decimals)

    def illustrate(self, model: nn.Module, batch: Batch) -> Mapping[str, str]:
        return {}


@dataclass
class LanguageModelling:
    """The next token of a text.

    Args:
        inputs: fields given to the model.
        target: field of the next tokens, int64 [batch, time].
        bytes_per_token: average bytes that a token stands for; 1 for bytes.
        sample_length: tokens generated for the report; 0 for none.
        temperature: of the sample.
        further_metrics: beside its own, by name; each is given the outputs and targets that the loss takes.
        loss_function: another loss, of outputs and targets.
        monitor, mode: see `Task`.
    """

    inputs: Sequence[str] = ("tokens",)
    target: str = "next"
    bytes_per_token: float = 1.0
    sample_length: int = 400
    temperature: float = 0.8
    monitor: str = "bits_per_byte"
    mode: Literal["max", "min"] = "min"
    further_metrics: Mapping[str, Metric] = field(default_factory=dict)
    loss_function: LossFunction | None = None
    _per_token: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._per_token = 1.0 / (self.bytes_per_token * torch.log(torch.tensor(2.0)).item())

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return (self.loss_function or F.cross_entropy)(outputs.flatten(0, 1).float(), batch[self.target].flatten())

    def metrics(self) -> MetricCollection:
        return collection({"loss": MeanMetric(), "bits_per_byte": MeanMetric()}, self.further_metrics)

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        logits, target = outputs.flatten(0, 1).float(), batch[self.target].flatten()
        loss = F.cross_entropy(logits, target)
        for name in self.further_metrics:
            metrics[name].update(logits, target)
        metrics["loss"].update(loss, weight=batch[self.target].numel())
        metrics["bits_per_byte"].update(loss * self._per_token, weight=batch[self.target].numel())

    def decide(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(dim=-1)

    def illustrate(self, model: nn.Module, batch: Batch) -> Mapping[str, str]:
        generate: Any = getattr(model, "generate", None)
        if generate is None or not self.sample_length:
            return {}
        prompt = batch[self.inputs[0]][:1, :64]
        tokens = generate(prompt, self.sample_length, self.temperature, torch.Generator().manual_seed(0))[0].tolist()
        text = bytes(t for t in tokens if 0 < t < 256).decode(errors="replace")
        head = bytes(t for t in prompt[0].tolist() if 0 < t < 256).decode(errors="replace")
        return {"Text sample": f"{head}⟦{text[len(head) :]}⟧"}


def scalars(metrics: MetricCollection, prefix: str) -> dict[str, float]:
    """Return the scalar values of metrics, by `prefix/name`."""
    return {f"{prefix}/{name}": v.item() for name, v in metrics.compute().items() if v.numel() == 1}
