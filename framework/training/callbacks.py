"""What happens at the boundary of a training step, in this order: look, average, log, validate, save, show, stop.

Training is one long epoch to Lightning (`framework.data.loader.Steps`), and validation is ours: so the state saved
at a boundary is all there is, and a run that goes on from it repeats and drops nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import pytorch_lightning as pl
import torch

from framework.data.loader import EvalLoader
from framework.record.console import Advance, progress

from .averaging import Averaging
from .module import TrainingModule
from .step import StepCallback


class Validation(StepCallback):
    """Judges the model (its averaged weights, where they are kept) every so many steps, and after the last.

    Args:
        loader: of the validation split.
        every: steps.
        averaging: keeps the averaged weights, or None.
    """

    def __init__(self, loader: EvalLoader, every: int, averaging: Averaging | None = None) -> None:
        self.loader, self.every, self.averaging = loader, every, averaging

    def on_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        if step % self.every == 0 or step == trainer.max_steps:
            self.judge(trainer, module, step)

    def judge(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        """Judge the model now; every rank must call it."""
        module.flush(step)
        module.eval()
        with self.averaging.applied(module) if self.averaging else nullcontext(), torch.no_grad():
            module.begin_validation()
            for index, batch in enumerate(self.loader):
                batch = trainer.precision_plugin.convert_input(batch)
                batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
                trainer.strategy.validation_step(batch, index)
            module.end_validation(step)
        module.train()


class ProgressLine(StepCallback):
    """Shows steps, rate, time left and loss.

    Args:
        what: what is being done, such as `training`.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._shown: AbstractContextManager[Advance] | None = None

    def on_start(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        if trainer.is_global_zero:
            self._shown = progress(self.what, trainer.max_steps, "steps", done=trainer.global_step)
            self._advance = self._shown.__enter__()

    def on_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        if self._shown is not None:
            self._advance(note=_note(module.logged))

    def on_end(self) -> None:
        if self._shown is not None:
            self._shown.__exit__(None, None, None)
            self._shown = None


def _note(logged: Mapping[str, float]) -> str:
    """Return what a person watches, from what was logged last."""
    shown = {"loss": "train/loss", "lr": "train/lr", "norm": "train/gradient_norm"}
    texts = [f"{name} {logged[key]:.3g}" for name, key in shown.items() if key in logged]
    if "train/samples_per_s" in logged:
        texts.append(f"{logged['train/samples_per_s']:,.0f} rows/s")
    if "train/mfu" in logged:
        texts.append(f"MFU {logged['train/mfu']:.0%}")
    return ", ".join(texts)


class Heartbeat(StepCallback):
    """Says that a step is done, to whoever watches this rank.

    Args:
        beat: called with the step.
    """

    def __init__(self, beat: Callable[[int], None]) -> None:
        self.beat = beat

    def on_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        self.beat(step)
