"""The boundary of a training step, where everything that is not training happens."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from .module import TrainingModule


class StepCallback(pl.Callback):
    """Calls `on_step` once the optimizer has stepped, however many micro-batches that took."""

    def on_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        """React to optimizer step `step`, counted from 1."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.on_step(trainer, pl_module, trainer.global_step)
