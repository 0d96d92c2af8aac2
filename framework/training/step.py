"""The boundary of a training step, where everything that is not training happens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl

from .module import TrainingModule


class StepCallback:
    """Acts once the optimizer has stepped, and at the ends of a training."""

    def on_start(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Begin: everything is set up, and no step has been taken."""

    def on_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        """React to optimizer step `step`, counted from 1."""

    def on_end(self) -> None:
        """Close: training has ended, well or with an error."""


class Boundary(pl.Callback):
    """Has step callbacks act, in order; to Lightning they are one, since each costs it some 100 us in every step.

    Args:
        callbacks: who acts.
    """

    def __init__(self, callbacks: Sequence[StepCallback]) -> None:
        self.callbacks = callbacks

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        for callback in self.callbacks:
            callback.on_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            for callback in self.callbacks:
                callback.on_step(trainer, pl_module, trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for callback in self.callbacks:
            callback.on_end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        for callback in self.callbacks:
            callback.on_end()
