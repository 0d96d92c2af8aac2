"""An exponential moving average of the weights (Polyak and Juditsky, 1992), by which a model is judged and kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from .module import TrainingModule
from .step import StepCallback


class Averaging(StepCallback):
    """Keeps averaged weights beside those that are trained; each rank of its own part.

    Args:
        decay: share of the old average that stays at each step; smaller in the first steps, as (1 + n) / (10 + n).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._average: dict[str, Tensor] = {}

    def on_start(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        if not self._average:
            self._average = {n: p.detach().float().clone() for n, p in module.model.named_parameters()}

    @torch.no_grad()
    def on_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        rate = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, parameter in module.model.named_parameters():
            self._average[name].lerp_(parameter.detach().float(), rate)

    @contextmanager
    def applied(self, module: TrainingModule) -> Iterator[None]:
        """Have the averaged weights in the model."""
        parameters = dict(module.model.named_parameters())
        with torch.no_grad():
            trained = {name: p.detach().clone() for name, p in parameters.items()}
            for name, parameter in parameters.items():
                parameter.copy_(self._average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(trained[name])

    def gather(self) -> dict[str, Tensor]:
        """Return the full averaged weights in main memory; every rank must call it."""
        full = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in self._average.items()}
        return {name: tensor.cpu().clone() for name, tensor in full.items()}

    @torch.no_grad()
    def restore(self, module: TrainingModule, saved: dict[str, Tensor]) -> None:
        """Take up averaged weights, which every rank has whole."""
        for name, average in self._average.items():
            full = saved[name].to(average.device)
            if isinstance(average, DTensor):
                from torch.distributed.tensor import distribute_tensor

                average.copy_(distribute_tensor(full, average.device_mesh, average.placements))
            else:
                average.copy_(full)
