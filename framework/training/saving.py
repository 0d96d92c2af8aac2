"""Saving at the boundary of a step: the states to go on from, and the best weights."""

from __future__ import annotations

from contextlib import nullcontext
from time import monotonic
from typing import Any

import pytorch_lightning as pl
from safetensors.torch import save_file

from framework.data.loader import Resumable
from framework.errors import UserError
from framework.record.console import say
from framework.record.files import write_json

from .anomalies import Anomalies
from .averaging import Averaging
from .checkpoints import BEST, CheckpointFolder
from .module import TrainingModule
from .state import Weights, gather_optimizer, gather_random, gather_weights, spread_optimizer, spread_random
from .step import StepCallback


class Checkpoints(StepCallback):
    """Keeps states (to go on from) and the best weights (to work on).

    Args:
        store: of the states; the best weights lie beside them, in `best.safetensors` and `best.json`.
        loader: of the train split, whose position is part of a state.
        found: the state to go on from; the model has its weights, and the loader its position, already.
        metric, mode: the validation metric by which weights are best.
        every: steps between states, beside those after each validation; None for no others.
        patience: validations without a better one after which training ends; None for no such end.
        averaging: keeps the averaged weights, which are those that are best, or None.
        anomalies: have a state, too.
    """

    def __init__(
        self,
        store: CheckpointFolder,
        loader: Resumable,
        found: dict[str, Any] | None,
        metric: str,
        mode: str,
        every: int | None = None,
        patience: int | None = None,
        averaging: Averaging | None = None,
        anomalies: Anomalies | None = None,
    ) -> None:
        self.store, self.loader, self.metric, self.every = store, loader, metric, every
        self.patience, self.averaging, self.anomalies = patience, averaging, anomalies
        self.saved_at: float | None = None
        self.sign = 1.0 if mode == "max" else -1.0
        self.best: dict[str, float] = {} if found is None else found["best"]
        self.worse = 0 if found is None else found["worse"]
        self._found = found

    def on_start(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        if self._found is None:
            return
        spread_optimizer(trainer, module, self._found["optimizer"])
        for config, state in zip(trainer.lr_scheduler_configs, self._found["schedulers"], strict=True):
            config.scheduler.load_state_dict(state)
        if (scaler := getattr(trainer.precision_plugin, "scaler", None)) is not None and self._found["scaler"]:
            scaler.load_state_dict(self._found["scaler"])
        trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = self._found[
            "step"
        ]
        if self.averaging is not None and self._found["averaged"] is not None:
            self.averaging.restore(module, self._found["averaged"])
        if self.anomalies is not None and "anomalies" in self._found:
            self.anomalies.load_state_dict(self._found["anomalies"])
        spread_random(trainer, self._found["random"])
        self._found = None

    def on_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        validated = module.validated_step == step
        if validated:
            if self.metric not in module.validation:
                known = ", ".join(module.validation)
                raise UserError(f"task.monitor: the task has no metric `{self.metric}`; it has {known}")
            if self._better(module.validation[self.metric]):
                self.best, self.worse = dict(module.validation), 0
                with self.averaging.applied(module) if self.averaging else nullcontext():
                    self._save_best(gather_weights(trainer, module), trainer, step)
            else:
                self.worse += 1
        if validated or (self.every is not None and step % self.every == 0):
            self.save(trainer, module)
        if self.patience is not None and self.worse >= self.patience and not trainer.should_stop:
            if trainer.is_global_zero:
                say(f"  no better {self.metric} in {self.worse} validations: training ends at step {step}")
            trainer.should_stop = True

    def save(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Write the whole state of training; every rank must call it."""
        step = trainer.global_step
        module.flush(step)
        weights, optimizer = gather_weights(trainer, module), gather_optimizer(trainer, module)
        random = gather_random(trainer)
        averaged = self.averaging.gather() if self.averaging is not None else None
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
            "worse": self.worse,
            "averaged": averaged,
            "anomalies": self.anomalies.state_dict() if self.anomalies is not None else None,
        }
        self.store.write(step, state, weights)
        self.saved_at = monotonic()

    def on_end(self) -> None:
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
