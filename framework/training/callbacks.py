"""What happens at the boundary of a training step, in this order: log, validate, save, show, stop.

Training is one long epoch to Lightning (`framework.data.loader.Steps`), and validation is ours: so the state saved
at a boundary is all there is, and a run that goes on from it repeats and drops nothing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from framework.data.loader import EvalLoader
from framework.errors import Preempted, UserError
from framework.record.console import Advance, progress, say
from framework.record.files import write_json
from framework.record.interrupts import INTERRUPTS

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


class MetricsLog(StepCallback):
    """Hands the training metrics to the trackers every so many steps.

    Args:
        every: steps.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        if step % self.every == 0:
            module.flush(step)


class Validation(StepCallback):
    """Judges the model on the validation split every so many steps, and after the last.

    Args:
        loader: of the validation split.
        every: steps.
    """

    def __init__(self, loader: EvalLoader, every: int) -> None:
        self.loader, self.every = loader, every

    def on_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        if step % self.every and step != trainer.max_steps:
            return
        module.flush(step)
        module.eval()
        with torch.inference_mode():
            module.begin_validation()
            for index, batch in enumerate(self.loader):
                batch = trainer.precision_plugin.convert_input(batch)
                batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
                trainer.strategy.validation_step(batch, index)
            module.end_validation(step)
        module.train()


class Checkpoints(StepCallback):
    """Keeps the last state (to go on from) and the best weights (to work on), each written aside and renamed.

    Args:
        folder: where to; `last.ckpt`, `best.safetensors`, `best.json`.
        metric, mode: the validation metric by which weights are best.
    """

    def __init__(self, folder: Path, metric: str, mode: str) -> None:
        self.folder, self.metric, self.sign = folder, metric, 1.0 if mode == "max" else -1.0
        self.best: dict[str, float] = {}
        self.best_step = -1
        self._random_state: torch.Tensor | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._random_state is not None:
            torch.set_rng_state(self._random_state)

    def on_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        if module.validated_step != step:
            return
        if self.metric not in module.validation:
            known = ", ".join(module.validation)
            raise UserError(f"task.monitor: the task has no metric `{self.metric}`; it has {known}")
        if self._better(module.validation[self.metric]):
            self.best, self.best_step = dict(module.validation), step
            if trainer.is_global_zero:
                self._save_best(module)
        self.save_last(trainer, module)

    def save_last(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Write the whole state of training to `last.ckpt`."""
        module.flush(trainer.global_step)
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / ".last.ckpt"
        trainer.save_checkpoint(aside)
        if trainer.is_global_zero:
            aside.replace(self.folder / "last.ckpt")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "random_state": torch.get_rng_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]
        self._random_state = state_dict["random_state"]

    def _better(self, value: float) -> bool:
        return not self.best or self.sign * value >= self.sign * self.best[self.metric]  # of equals, the later

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


class ProgressLine(StepCallback):
    """Shows steps, rate, time left and loss.

    Args:
        what: what is being done, such as `training`.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._shown: AbstractContextManager[Advance] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._shown = progress(self.what, trainer.max_steps, "steps", done=trainer.global_step)
            self._advance = self._shown.__enter__()

    def on_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        if self._shown is not None:
            self._advance(note=f"loss {module.last_loss:.4f}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._shown is not None:
            self._shown.__exit__(None, None, None)
            self._shown = None


class StopOnSignal(StepCallback):
    """Ends training at a step boundary once a signal has asked for it, after saving the state.

    Args:
        checkpoints: what saves it.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints

    def on_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        requested = torch.tensor(0 if INTERRUPTS.requested is None else 1)
        if trainer.world_size > 1:
            requested = trainer.strategy.reduce(requested.to(module.device), reduce_op="sum")
        if requested:
            self.checkpoints.save_last(trainer, module)
            why = f"stopped by {INTERRUPTS.requested or 'a signal'} at step {step}"
            say(f"  {why}; the state is saved")
            raise Preempted(why)
