"""The LightningModule: a model, a task and an optimizer, with metrics that cost nothing between log steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DeepSpeedStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torchmetrics import MetricCollection

from framework.data.batch_transforms import Batch

from .clipping import clip_gradients, whole
from .groups import Group, with_parameters
from .job import LogMetrics
from .strategies import shard
from .tasks import Task, forward, scalars

OptimizerFactory = Callable[[Iterable[dict[str, Any]]], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler]


class Judge(Protocol):
    """Says whether steps are sound; see `Anomalies`."""

    @property
    def skips(self) -> bool:
        """Whether each step is judged before its update."""

    def is_sound(self, loss: float, norm: float) -> bool:
        """Return whether a step may update the weights."""

    def require_sound(self, losses: list[float], norms: list[float], step: int) -> None:
        """Raise when one of the steps since the last time, `step` among them, is not sound."""


class MetricBuffer:
    """Keeps detached scalars until they are wanted: one transfer for many steps."""

    def __init__(self) -> None:
        self._values: list[Tensor] = []

    def add(self, value: Tensor) -> None:
        """Keep a scalar without waiting for the device."""
        self._values.append(value.detach())

    def take(self, count: int | None = None) -> Tensor:
        """Return the newest `count` values, or all, [count], and forget them."""
        start = 0 if count is None else len(self._values) - count
        taken, self._values = self._values[start:], self._values[:start]
        return torch.stack([whole(value) for value in taken]).float() if taken else torch.zeros(0)

    def __len__(self) -> int:
        return len(self._values)


class TrainingModule(pl.LightningModule):
    """Trains a model on a task.

    Args:
        model: the network.
        task: loss and metrics.
        groups: of the parameters.
        optimizer: makes the optimizer from them.
        scheduler: makes the learning-rate schedule from the optimizer and the number of steps, or None.
        log: receives metrics and the step, on rank 0.
        steps_per_epoch: optimizer steps that make an epoch.
        judge: of steps.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        groups: Sequence[Group],
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        log: LogMetrics,
        steps_per_epoch: int,
        judge: Judge,
    ) -> None:
        super().__init__()
        self.model, self.task, self.groups, self.judge = model, task, list(groups), judge
        self._optimizer, self._scheduler = optimizer, scheduler
        self._log, self._steps_per_epoch = log, steps_per_epoch
        self._losses, self._norms = MetricBuffer(), MetricBuffer()
        self._val_metrics: MetricCollection | None = None
        self.last_loss = float("nan")
        self.logged: dict[str, float] = {}
        self.validation: dict[str, float] = {}
        self.validated_step = -1
        self._sharded = False
        self.sequence_length = 0
        """Tokens of a row; 0 where rows are not tokens."""

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(with_parameters(self.model, self.groups))
        if self._scheduler is None:
            return optimizer
        schedule = self._scheduler(optimizer, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.task.loss(forward(self.model, self.task, batch), batch)
        self._losses.add(loss)
        first = batch[self.task.inputs[0]]
        if first.ndim == 2 and not first.is_floating_point():
            self.sequence_length = first.shape[1]
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm of all gradients, and keep it; leave the update out where the judge says so.

        DeepSpeed clips by itself.
        """
        if isinstance(self.trainer.strategy, DeepSpeedStrategy) or (gradient_clip_val is None and not self.judge.skips):
            return
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = clip_gradients(parameters, gradient_clip_val)
        if self.judge.skips and not self._scales_losses:
            losses = self._losses.take(self.trainer.accumulate_grad_batches)
            if not self.judge.is_sound(self._over_ranks(losses.mean()).item(), whole(norm).item()):
                for parameter in parameters:
                    parameter.grad = None  # which optimizers pass over
                return
            for loss in losses:
                self._losses.add(loss)
        self._norms.add(norm)

    @property
    def _scales_losses(self) -> bool:
        """Whether gradients may overflow by design: the scaler then leaves the update out, and scales less."""
        return getattr(self.trainer.precision_plugin, "scaler", None) is not None

    def flush(self, step: int, further: Mapping[str, float] = MappingProxyType({})) -> None:
        """Hand the mean loss since the last time, learning rate, norm of the gradients and more to the trackers.

        Raises:
            UserError: when one of the steps since then has gone wrong.
        """
        if not len(self._losses):
            return
        micro_batches = self._losses.take().view(-1, self.trainer.accumulate_grad_batches)
        losses = self._over_ranks(micro_batches.mean(1)).tolist()
        norms = self._norms.take().tolist()
        self.judge.require_sound(losses, [] if self._scales_losses else norms, step)
        self.last_loss = sum(losses) / len(losses)
        if isinstance(self.trainer.strategy, DeepSpeedStrategy):
            norm = self.trainer.strategy.deepspeed_engine.get_global_grad_norm()
            norms = [] if norm is None else [float(norm)]
        if self.global_rank == 0:
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            self.logged = {"train/loss": self.last_loss, "train/lr": rate, "epoch": step / self._steps_per_epoch}
            self.logged |= {"train/gradient_norm": norms[-1]} if norms else {}
            self.logged |= further
            self._log(self.logged, step)

    def _over_ranks(self, values: Tensor) -> Tensor:
        """Return the mean of each value over all ranks."""
        if self.trainer.world_size == 1:
            return values
        reduced = self.trainer.strategy.reduce(values.to(self.device), reduce_op="mean")
        assert isinstance(reduced, Tensor)
        return reduced

    def configure_model(self) -> None:
        strategy = self.trainer.strategy
        if isinstance(strategy, ModelParallelStrategy) and not self._sharded:
            precision = str(self.trainer.precision_plugin.precision)
            shard(self.model, strategy.device_mesh, precision, getattr(strategy, "wrap", None))
            self._sharded = True

    def begin_validation(self) -> None:
        """Start from fresh metrics."""
        self._val_metrics = self.task.metrics().to(self.device)
        strategy = self.trainer.strategy
        if isinstance(strategy, ModelParallelStrategy):  # ranks that share layers see the same rows, which count once
            for metric in self._val_metrics.values():
                metric.process_group = strategy.device_mesh["data_parallel"].get_group()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert self._val_metrics is not None
        self.task.update(self._val_metrics, forward(self.model, self.task, batch), batch)

    def end_validation(self, step: int) -> None:
        """Compute the metrics, over all ranks, and hand them to the trackers."""
        assert self._val_metrics is not None
        self.validation, self.validated_step = scalars(self._val_metrics, "val"), step
        if self.global_rank == 0:
            self._log(self.validation, step)
