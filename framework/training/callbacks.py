"""What happens at the boundary of a training step, in this order: log, validate, save, show, stop.

Training is one long epoch to Lightning (`framework.data.loader.Steps`), and validation is ours: so the state saved
at a boundary is all there is, and a run that goes on from it repeats and drops nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from framework.data.loader import EvalLoader, Resumable
from framework.errors import Preempted, UserError
from framework.record.console import Advance, progress, say
from framework.record.files import write_json
from framework.record.interrupts import INTERRUPTS

from .checkpoints import CheckpointFolder
from .module import TrainingModule
from .state import Weights, gather_optimizer, gather_random, gather_weights, spread_optimizer, spread_random

BEST = "best.safetensors"


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
    """Keeps states (to go on from) and the best weights (to work on).

    Args:
        store: of the states; the best weights lie beside them, in `best.safetensors` and `best.json`.
        loader: of the train split, whose position is part of a state.
        found: the state to go on from; the model has its weights, and the loader its position, already.
        metric, mode: the validation metric by which weights are best.
        every: steps between states, beside those after each validation; None for no others.
    """

    def __init__(
        self,
        store: CheckpointFolder,
        loader: Resumable,
        found: dict[str, Any] | None,
        metric: str,
        mode: str,
        every: int | None = None,
    ) -> None:
        self.store, self.loader, self.metric, self.every = store, loader, metric, every
        self.sign = 1.0 if mode == "max" else -1.0
        self.best: dict[str, float] = {} if found is None else found["best"]
        self._found = found

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._found is None:
            return
        assert isinstance(pl_module, TrainingModule)
        spread_optimizer(trainer, pl_module, self._found["optimizer"])
        for config, state in zip(trainer.lr_scheduler_configs, self._found["schedulers"], strict=True):
            config.scheduler.load_state_dict(state)
        if (scaler := getattr(trainer.precision_plugin, "scaler", None)) is not None and self._found["scaler"]:
            scaler.load_state_dict(self._found["scaler"])
        trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = self._found[
            "step"
        ]
        spread_random(trainer, self._found["random"])
        self._found = None

    def on_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        validated = module.validated_step == step
        if validated:
            if self.metric not in module.validation:
                known = ", ".join(module.validation)
                raise UserError(f"task.monitor: the task has no metric `{self.metric}`; it has {known}")
            if self._better(module.validation[self.metric]):
                self.best = dict(module.validation)
                self._save_best(gather_weights(trainer, module), trainer, step)
        if validated or (self.every is not None and step % self.every == 0):
            self.save(trainer, module)

    def save(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Write the whole state of training; every rank must call it."""
        step = trainer.global_step
        module.flush(step)
        weights, optimizer = gather_weights(trainer, module), gather_optimizer(trainer, module)
        random = gather_random(trainer)
        if not trainer.is_global_zero:
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        state = {
            "step": step,
            "optimizer": optimizer,
            "schedulers": [dict(c.scheduler.state_dict()) for c in trainer.lr_scheduler_configs],
            "scaler": scaler.state_dict() if scaler is not None else None,
            "random": random,
            "loader": self.loader.state_dict(),
            "best": self.best,
        }
        self.store.write(step, state, weights)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.store.wait()

    def _better(self, value: float) -> bool:
        return not self.best or self.sign * value >= self.sign * self.best[self.metric]  # of equals, the later

    def _save_best(self, weights: Weights, trainer: pl.Trainer, step: int) -> None:
        if not trainer.is_global_zero:
            return
        folder = self.store.folder
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f".{BEST}"
        save_file(weights, aside)
        aside.replace(folder / BEST)
        write_json(folder / "best.json", {"step": step, "metrics": self.best})


def load_best(model: nn.Module, folder: Path) -> None:
    """Put the best weights of a training into the model."""
    model.load_state_dict(load_file(folder / BEST), strict=False)


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
    """Ends training at a step boundary once a signal has asked any rank for it, after saving the state.

    Ranks tell each other in the background: what was asked at one boundary is agreed upon at the next, so that no step
    waits for it.

    Args:
        checkpoints: what saves the state.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self._group: Any = None
        self._asked: tuple[torch.Tensor, Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        INTERRUPTS.take_back()  # Lightning would end a rank that is signalled at once, and leave the others waiting
        if trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo")  # also beside NCCL, so that a GPU is not waited for

    def on_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        if not self._agreed(trainer):
            return
        self.checkpoints.save(trainer, module)
        self.checkpoints.store.wait()
        why = f"stopped by {INTERRUPTS.requested or 'a signal'} at step {step}"
        if trainer.is_global_zero:
            say(f"  {why}; the state is saved")
        raise Preempted(why)

    def _agreed(self, trainer: pl.Trainer) -> bool:
        if trainer.world_size == 1:
            return INTERRUPTS.requested is not None
        answer = False
        if self._asked is not None:
            flag, work = self._asked
            work.wait()
            answer = bool(flag)
        flag = torch.tensor(0 if INTERRUPTS.requested is None else 1)
        self._asked = flag, dist.all_reduce(flag, group=self._group, async_op=True)
        return answer


class Heartbeat(StepCallback):
    """Says that a step is done, to whoever watches this rank.

    Args:
        beat: called with the step.
    """

    def __init__(self, beat: Callable[[int], None]) -> None:
        self.beat = beat

    def on_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        self.beat(step)
