"""What happens at the boundary of a training step, in this order: log, validate, save, show, stop.

Training is one long epoch to Lightning (`framework.data.loader.Steps`), and validation is ours: so the state saved
at a boundary is all there is, and a run that goes on from it repeats and drops nothing.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytorch_lightning as pl
import torch

from framework.data.loader import EvalLoader, Steps
from framework.record.console import Advance, progress

from .averaging import Averaging
from .module import TrainingModule
from .step import StepCallback


class MetricsLog(StepCallback):
    """Hands the training metrics to the trackers every so many steps, with rates since the last time.

    Args:
        every: steps.
        steps: the training's batches, which know how long they were waited for.
        rows: of a global batch.
    """

    def __init__(self, every: int, steps: Steps, rows: int) -> None:
        self.every, self.steps, self.rows = every, steps, rows

    def on_start(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        self._begin(trainer.global_step)

    def on_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        if step % self.every:
            return
        seconds, steps = time.perf_counter() - self._since, step - self._step
        tokens = module.take_tokens() * trainer.world_size
        rates = {
            "train/samples_per_s": steps * self.rows / seconds,
            "train/waiting_for_data": (self.steps.waited - self._waited) / seconds,
            "train/memory_gb": _memory() / 1e9,
        }
        module.flush(step, {**rates, **({"train/tokens_per_s": tokens / seconds} if tokens else {})})
        self._begin(step)

    def _begin(self, step: int) -> None:
        self._since, self._step, self._waited = time.perf_counter(), step, self.steps.waited


def _memory() -> int:
    """Return the most memory that this process has taken, in bytes: the GPU's where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
            self._advance(note=f"loss {module.last_loss:.4f}")

    def on_end(self) -> None:
        if self._shown is not None:
            self._shown.__exit__(None, None, None)
            self._shown = None


class Heartbeat(StepCallback):
    """Says that a step is done, to whoever watches this rank.

    Args:
        beat: called with the step.
    """

    def __init__(self, beat: Callable[[int], None]) -> None:
        self.beat = beat

    def on_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        self.beat(step)
