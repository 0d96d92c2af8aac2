"""The LightningModule: a model, a task and an optimizer, with metrics that cost nothing between log steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DeepSpeedStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchmetrics import MetricCollection

from framework.data.batch_transforms import Batch
from framework.errors import UserError

from .strategies import shard
from .tasks import Task, forward

LogMetrics = Callable[[dict[str, float], int], None]
OptimizerFactory = Callable[[Iterable[dict[str, Any]]], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler]


class MetricBuffer:
    """Keeps detached scalars until they are wanted: one reduction and one transfer for many steps."""

    def __init__(self) -> None:
        self._values: list[Tensor] = []

    def add(self, value: Tensor) -> None:
        """Keep a scalar without waiting for the device."""
        self._values.append(value.detach())

    def mean(self) -> float:
        """Return the mean of what was kept, and forget it."""
        mean = torch.stack(self._values).float().mean().item()
        self._values.clear()
        return mean

    def __len__(self) -> int:
        return len(self._values)


class TrainingModule(pl.LightningModule):
    """Trains a model on a task.

    Args:
        model: the network.
        task: loss and metrics.
        optimizer: makes the optimizer from parameter groups.
        scheduler: makes the learning-rate schedule from the optimizer and the number of steps, or None.
        log: receives metrics and the step, on rank 0.
        steps_per_epoch: optimizer steps that make an epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        log: LogMetrics,
        steps_per_epoch: int,
    ) -> None:
        super().__init__()
        self.model, self.task = model, task
        self._optimizer, self._scheduler = optimizer, scheduler
        self._log, self._steps_per_epoch = log, steps_per_epoch
        self._losses = MetricBuffer()
        self._val_metrics: MetricCollection | None = None
        self.last_loss = float("nan")
        self.validation: dict[str, float] = {}
        self.validated_step = -1
        self._sharded = False
        self._gradient_norm: Tensor | None = None
        self._tokens = 0

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(parameter_groups(self.model))
        if self._scheduler is None:
            return optimizer
        schedule = self._scheduler(optimizer, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.task.loss(forward(self.model, self.task, batch), batch)
        self._losses.add(loss)
        first = batch[self.task.inputs[0]]
        if first.ndim == 2 and not first.is_floating_point():
            self._tokens += first.numel()
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm of all gradients, and keep it; DeepSpeed does both itself."""
        if gradient_clip_val is not None and not isinstance(self.trainer.strategy, DeepSpeedStrategy):
            self._gradient_norm = nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip_val)

    def take_tokens(self) -> int:
        """Return how many tokens this rank has seen since the last time; 0 where rows are not tokens."""
        seen, self._tokens = self._tokens, 0
        return seen

    def _norm(self) -> float | None:
        if isinstance(self.trainer.strategy, DeepSpeedStrategy):
            found = self.trainer.strategy.deepspeed_engine.get_global_grad_norm()
            return None if found is None else float(found)
        norm = self._gradient_norm
        return None if norm is None else float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def flush(self, step: int, further: Mapping[str, float] = MappingProxyType({})) -> None:
        """Hand the mean loss since the last time, learning rate, norm of the gradients and more to the trackers."""
        if not len(self._losses):
            return
        self.last_loss = self._over_ranks(self._losses.mean())
        if not self.last_loss < float("inf"):
            raise UserError(
                f"the training loss is {self.last_loss} by step {step}; "
                "a smaller optimizer.lr, trainer.gradient_clip or precision=fp32 may help"
            )
        norm = self._norm()
        if self.global_rank == 0:
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            seen = {"train/loss": self.last_loss, "train/lr": rate, "epoch": step / self._steps_per_epoch, **further}
            self._log(seen if norm is None else {**seen, "train/gradient_norm": norm}, step)

    def _over_ranks(self, value: float) -> float:
        """Return the mean over all ranks."""
        if self.trainer.world_size == 1:
            return value
        return float(self.trainer.strategy.reduce(torch.tensor(value, device=self.device), reduce_op="mean"))

    def configure_model(self) -> None:
        strategy = self.trainer.strategy
        if isinstance(strategy, ModelParallelStrategy) and not self._sharded:
            shard(self.model, strategy.device_mesh, str(self.trainer.precision_plugin.precision))
            self._sharded = True

    def begin_validation(self) -> None:
        """Start from fresh metrics."""
        self._val_metrics = self.task.metrics().to(self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert self._val_metrics is not None
        self.task.update(self._val_metrics, forward(self.model, self.task, batch), batch)

    def end_validation(self, step: int) -> None:
        """Compute the metrics, over all ranks, and hand them to the trackers."""
        assert self._val_metrics is not None
        self.validation, self.validated_step = scalars(self._val_metrics, "val"), step
        if self.global_rank == 0:
            self._log(self.validation, step)


def scalars(metrics: MetricCollection, prefix: str) -> dict[str, float]:
    """Return the scalar values of metrics, by `prefix/name`."""
    return {f"{prefix}/{name}": v.item() for name, v in metrics.compute().items() if v.numel() == 1}


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return two groups: matrices with the optimizer's weight decay; norms, biases and other vectors without."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in wanted if p.ndim >= 2], [p for p in wanted if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return [g for g in groups if g["params"]]
