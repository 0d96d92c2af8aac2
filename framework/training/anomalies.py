"""Losses and gradients that are not finite, and losses that leap: told, shown with their rows, skipped by choice."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from safetensors.torch import save_file

from framework.data.batch_transforms import Batch
from framework.data.loader import Resumable
from framework.errors import UserError
from framework.record.console import say
from framework.record.files import write_json

from .module import TrainingModule
from .step import StepCallback

_SHOWN = 8
_ADVICE = "a smaller optimizer.lr, trainer.gradient_clip or precision=fp32 may help, and so may looking at the rows"


@dataclass
class Guard:
    """Says what is wrong with a step, from its loss and the norm of its gradients.

    Args:
        spike: a loss of more than so many times the median of the steps before is wrong; None for no such limit.
        memory: of how many steps; before there are so many, no loss leaps.
    """

    spike: float | None = None
    memory: int = 50
    recent: deque[float] = field(default_factory=deque)

    def complaint(self, loss: float, norm: float | None) -> str | None:
        """Return what is wrong, or None; every rank must give the same values."""
        if not isfinite(loss):
            return f"the training loss is {loss}"
        if norm is not None and not isfinite(norm):
            return f"the norm of the gradients is {norm}"
        if self.spike is not None and len(self.recent) == self.memory:
            usual = median(self.recent)
            if loss > self.spike * usual:
                return f"the training loss leapt from {usual:.4g} to {loss:.4g}"
        self.recent.append(loss)
        if len(self.recent) > self.memory:
            self.recent.popleft()
        return None


class Anomalies(StepCallback):
    """Ends a training at a step that has gone wrong, or leaves out its update; either way its rows are told.

    Ending costs nothing: losses are looked at when metrics are logged, and the rows follow from the step. Leaving out
    needs every step's norm (and loss, for spikes) at once, for which a GPU is waited.

    Args:
        guard: says what is wrong.
        loader: of this rank; where it stands before a step says which rows the step takes.
        again: makes a loader like it, which gives these rows once more.
        folder: for what went wrong: `step_<n>_rank_<r>.safetensors` and `.json`.
        max_skipped: updates that are left out before training ends; 0 to end at the first.
    """

    def __init__(
        self, guard: Guard, loader: Resumable, again: Callable[[], Resumable], folder: Path, max_skipped: int = 0
    ) -> None:
        self.guard, self.loader, self.again, self.folder = guard, loader, again, folder
        self.max_skipped, self.skipped = max_skipped, 0
        self._before: list[dict[str, Any]] = []

    @property
    def skips(self) -> bool:
        """Whether steps are judged one by one, before their update."""
        return self.max_skipped > 0

    def on_start(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        self._trainer = trainer
        self._before = [self.loader.state_dict()]

    def on_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        self._before.append(self.loader.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return the losses that the next ones are compared with, and how many updates were left out."""
        return {"recent": list(self.guard.recent), "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.guard.recent, self.skipped = deque(state["recent"]), state["skipped"]

    def is_sound(self, loss: float, norm: float) -> bool:
        """Return whether the step that is being made may update the weights.

        Raises:
            UserError: when it may not, and too many were left out before.
        """
        complaint = self.guard.complaint(loss, norm)
        if complaint is None:
            return True
        step, self.skipped = self._trainer.global_step + 1, self.skipped + 1
        rows = self._keep(step, self._before[-1])
        if self.skipped > self.max_skipped:
            raise UserError(f"{complaint} at step {step}, and {self.max_skipped} were left out before; {rows}")
        if self._trainer.is_global_zero:
            say(f"  step {step} is left out: {complaint}; {rows}")
        return False

    def require_sound(self, losses: list[float], norms: list[float], step: int) -> None:
        """Judge the steps since the last time.

        Args:
            losses: of each, the mean over all ranks.
            norms: of its gradients; empty where they are not known.
            step: the last one.

        Raises:
            UserError: when one has gone wrong; its rows are told.
        """
        before = self._before[-len(losses) - 1 :]
        self._before = self._before[-1:]
        if self.skips:
            return
        for i, loss in enumerate(losses):
            complaint = self.guard.complaint(loss, norms[i] if norms else None)
            if complaint is not None:
                at = step - len(losses) + 1 + i
                raise UserError(f"{complaint} at step {at}; {self._keep(at, before[i])}; {_ADVICE}")

    def _keep(self, step: int, position: dict[str, Any]) -> str:
        """Write down the batch of a step as this rank got it; returns which rows it was made of."""
        loader, rank = self.again(), self._trainer.global_rank
        loader.load_state_dict(position)
        described = loader.describe_next()
        parts = list(islice(loader, self._trainer.accumulate_grad_batches))
        batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"step_{step:08d}_rank_{rank}"
        save_file({n: t.contiguous() for n, t in batch.items()}, self.folder / f"{name}.safetensors")
        share = len(described["rows"]) // self._trainer.world_size
        own = described["rows"][rank * share : (rank + 1) * share]
        spoilt = [own[i] for i in _spoilt(batch)] if len(own) == len(next(iter(batch.values()))) else []
        write_json(self.folder / f"{name}.json", {**described, "rank": rank, "own": own, "not_finite": spoilt})
        where = f"rows {_listed(described['rows'])} of {described['dataset']} ({described['split']})"
        bad = f", of which {_listed(spoilt)} hold values that are not finite" if spoilt else ""
        return f"it took {where}{bad}, kept in `{self.folder}`"


def _spoilt(batch: Batch) -> list[int]:
    """Return the places in a batch whose fields are not all finite."""
    bad: set[int] = set()
    for tensor in batch.values():
        if tensor.is_floating_point():
            bad |= set((~tensor.flatten(1).isfinite()).any(1).nonzero().flatten().tolist() if tensor.ndim > 1 else [])
    return sorted(bad)


def _listed(rows: list[int]) -> str:
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return ", ".join(map(str, rows[:_SHOWN])) + more
