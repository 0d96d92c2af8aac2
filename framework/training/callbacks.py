"""What happens beside the training loop: checkpoints, progress, stopping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from framework.errors import Preempted, UserError
from framework.record.console import progress, say
from framework.record.files import write_json
from framework.record.interrupts import INTERRUPTS

from .module import TrainingModule


class Checkpoints(pl.Callback):
    """Keeps the last state (to go on from) and the best weights (to work on), each written aside and renamed.

    Args:
        folder: where to; `last.ckpt`, `best.safetensors`, `best.json`.
        metric, mode: the validation metric by which weights are best.
    """

    def __init__(self, folder: Path, metric: str, mode: str) -> None:
        self.folder, self.metric, self.sign = folder, metric, 1.0 if mode == "max" else -1.0
        self.best: dict[str, float] = {}
        self.best_step = self.judged_step = -1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self.judged_step = trainer.global_step
        metrics = pl_module.validation
        if self.metric not in metrics:
            raise UserError(f"task.monitor: the task has no metric `{self.metric}`; it has {', '.join(metrics)}")
        if trainer.is_global_zero and self._better(metrics[self.metric]):
            self.best, self.best_step = dict(metrics), trainer.global_step
            self._save_best(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save_last(trainer)

    def save_last(self, trainer: pl.Trainer) -> None:
        """Write the whole state of training to `last.ckpt`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / ".last.ckpt"
        trainer.save_checkpoint(aside)
        if trainer.is_global_zero:
            aside.replace(self.folder / "last.ckpt")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "judged_step": self.judged_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]
        self.judged_step = state_dict["judged_step"]

    def _better(self, value: float) -> bool:
        return not self.best or self.sign * value > self.sign * self.best[self.metric]

    def _save_best(self, module: TrainingModule) -> None:
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / ".best.safetensors"
        weights = {n: t.detach().cpu().contiguous().clone() for n, t in module.model.state_dict().items()}
        save_file(weights, aside)
        aside.replace(self.folder / "best.safetensors")
        write_json(self.folder / "best.json", {"step": self.best_step, "metrics": self.best})

    def load_best(self, module: TrainingModule) -> None:
        """Put the best weights into the model."""
        from safetensors.torch import load_file

        module.model.load_state_dict(load_file(self.folder / "best.safetensors"))


class ProgressLine(pl.Callback):
    """Shows steps, rate, time left, loss and the monitored metric; a line at the end of each epoch in the log.

    Args:
        what: what is being done, such as `training`.
        metric: the validation metric to show.
    """

    def __init__(self, what: str, metric: str) -> None:
        self.what, self.metric = what, metric
        self._stack: Any = None
        self._advance: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            total = int(trainer.estimated_stepping_batches)
            self._stack = progress(self.what, total, "steps")
            self._advance = self._stack.__enter__()
            self._advance(trainer.global_step)
            self._seen = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self._advance is not None and trainer.global_step > self._seen:
            assert isinstance(pl_module, TrainingModule)
            self._advance(trainer.global_step - self._seen, note=f"loss {pl_module.last_loss:.4f}")
            self._seen = trainer.global_step

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._stack is not None:
            self._stack.__exit__(None, None, None)
            self._stack = self._advance = None


class StopOnSignal(pl.Callback):
    """Ends training at a step boundary once a signal has asked for it, after saving the state.

    Args:
        checkpoints: what saves it.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        requested = torch.tensor(0 if INTERRUPTS.requested is None else 1)
        if trainer.world_size > 1:
            requested = trainer.strategy.reduce(requested.to(pl_module.device), reduce_op="sum")
        at_boundary = trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches == 0
        if requested and (at_boundary or trainer.is_last_batch):
            self.checkpoints.save_last(trainer)
            say(f"  {INTERRUPTS.requested or 'a signal'}: state saved at step {trainer.global_step}")
            raise Preempted(f"stopped by {INTERRUPTS.requested or 'a signal'} at step {trainer.global_step}")
