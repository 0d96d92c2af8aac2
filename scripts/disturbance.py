"""A learning-rate schedule that disturbs the training it belongs to, as the environment says; for faults, on purpose.

DISTURB is JSON: {"step": 12, "rank": 1, "do": "SIGKILL"}; without a rank all do it. `do` is a signal, `nan` (the next
step's parameters are spoilt), `hang` or `raise`.
"""

from __future__ import annotations

import json
import os
import signal
import time

import torch
from torch.optim.lr_scheduler import LambdaLR

from framework.training import schedules


class Disturbed(LambdaLR):
    """A schedule that disturbs after a step."""

    def step(self, epoch: int | None = None) -> None:
        super().step(epoch)
        plan = json.loads(os.environ.get("DISTURB", "{}"))
        mine = plan.get("rank") in (None, int(os.environ.get("RANK", "0")))
        if plan and mine and self.last_epoch == plan["step"]:
            _disturb(plan["do"], self.optimizer)


def cosine(optimizer: torch.optim.Optimizer, steps: int, warmup: float = 0.05, final: float = 0.0) -> LambdaLR:
    """Return `framework.training.schedules.cosine`, with the disturbance."""
    return Disturbed(optimizer, schedules.cosine(optimizer, steps, warmup, final).lr_lambdas)


def _disturb(what: str, optimizer: torch.optim.Optimizer) -> None:
    if what.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[what])
    elif what == "hang":
        time.sleep(3600)
    elif what == "raise":
        raise RuntimeError("a disturbance")
    else:
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0].fill_(float("nan"))
