"""Ending a training at a step boundary that all ranks agree upon: after a signal, or when its time is over."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist

from framework.errors import Preempted
from framework.record.console import say
from framework.record.interrupts import INTERRUPTS

from .callbacks import Validation
from .module import TrainingModule
from .saving import Checkpoints
from .step import StepCallback

_GO_ON, _TIME_IS_OVER, _SIGNALLED = 0, 1, 2


class Stop(StepCallback):
    """Ends training once a signal has asked any rank for it, after saving the state; or when the time is over.

    Ranks tell each other in the background: what was asked at one boundary is agreed upon at the next, so that no step
    waits for it.

    Args:
        validation: judges the model before training ends for want of time.
        checkpoints: saves the state.
        time_budget_s: seconds that this process may train; None for no limit.
    """

    def __init__(self, validation: Validation, checkpoints: Checkpoints, time_budget_s: float | None = None) -> None:
        self.validation, self.checkpoints, self.time_budget_s = validation, checkpoints, time_budget_s
        self._group: Any = None
        self._asked: tuple[torch.Tensor, Any] | None = None

    def on_start(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        self._began = time.monotonic()
        INTERRUPTS.take_back()  # Lightning would end a rank that is signalled at once, and leave the others waiting
        if trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo")  # also beside NCCL, so that a GPU is not waited for

    def on_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        agreed = self._agreed(trainer)
        if agreed == _SIGNALLED:
            self.checkpoints.save(trainer, module)
            self.checkpoints.store.wait()
            why = f"stopped by {INTERRUPTS.requested or 'a signal'} at step {step}"
            if trainer.is_global_zero:
                say(f"  {why}; the state is saved")
            raise Preempted(why)
        if agreed == _TIME_IS_OVER and not trainer.should_stop:
            if module.validated_step != step:
                self.validation.judge(trainer, module, step)
                self.checkpoints.on_step(trainer, module, step)
            if trainer.is_global_zero:
                say(f"  trainer.time_budget_s is over at step {step} of {trainer.max_steps}")
            trainer.should_stop = True

    def _agreed(self, trainer: pl.Trainer) -> int:
        late = self.time_budget_s is not None and time.monotonic() - self._began > self.time_budget_s
        wanted = _SIGNALLED if INTERRUPTS.requested is not None else _TIME_IS_OVER if late else _GO_ON
        if trainer.world_size == 1:
            return wanted
        answer = _GO_ON
        if self._asked is not None:
            flag, work = self._asked
            work.wait()
            answer = int(flag)
        flag = torch.tensor(wanted)
        self._asked = flag, dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return answer
