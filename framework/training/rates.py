"""What is logged of a training beside its loss: rates, waiting, memory, the age of the last checkpoint."""

from __future__ import annotations

import resource
from time import monotonic, perf_counter

import pytorch_lightning as pl
import torch

from framework.data.loader import Steps

from .module import TrainingModule
from .saving import Checkpoints
from .step import StepCallback


class MetricsLog(StepCallback):
    """Hands the training metrics to the trackers every so many steps, with rates since the last time.

    Args:
        every: steps.
        steps: the training's batches, which know how long they were waited for.
        rows: of a global batch.
        checkpoints: know when a state was saved.
        flops: of a training step for one row; None where they are not known.
        peak: floating-point operations that a rank's device can do in a second; None where they are not known.
    """

    def __init__(
        self, every: int, steps: Steps, rows: int, checkpoints: Checkpoints, flops: float | None, peak: float | None
    ) -> None:
        self.every, self.steps, self.rows, self.checkpoints = every, steps, rows, checkpoints
        self.flops, self.peak = flops, peak

    def on_start(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        self._started = monotonic()
        self._begin(trainer.global_step)

    def on_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        if step % self.every:
            return
        seconds, steps = perf_counter() - self._since, step - self._step
        rows = steps * self.rows / seconds
        rates = {
            "train/samples_per_s": rows,
            "train/waiting_for_data": (self.steps.waited - self._waited) / seconds,
            "train/memory_gb": _memory() / 1e9,
            "train/checkpoint_age_s": monotonic() - (self.checkpoints.saved_at or self._started),
        }
        if length := module.sequence_length:
            rates["train/tokens_per_s"] = rows * length
        if self.flops is not None:
            rates["train/tflops_per_s"] = self.flops * rows / 1e12
            if self.peak is not None:
                rates["train/mfu"] = self.flops * rows / (self.peak * trainer.world_size)
        module.flush(step, rates)
        self._begin(step)

    def _begin(self, step: int) -> None:
        self._since, self._step, self._waited = perf_counter(), step, self.steps.waited


def _memory() -> int:
    """Return the most memory that this process has taken, in bytes: the GPU's where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
