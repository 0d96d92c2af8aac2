"""Learning-rate schedules: each is a function from the optimizer and the number of steps to a scheduler."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine(optimizer: Optimizer, steps: int, warmup: float = 0.05, final: float = 0.0) -> LambdaLR:
    """Rise linearly, then fall along a half cosine (Loshchilov and Hutter, 2016).

    Args:
        optimizer: whose rates are scaled.
        steps: optimizer steps of the whole training.
        warmup: share of the steps in which the rate rises.
        final: last rate over the highest.
    """
    rise = max(1, round(steps * warmup))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        progress = min(1.0, (step - rise) / max(1, steps - rise))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def wsd(optimizer: Optimizer, steps: int, warmup: float = 0.05, decay: float = 0.2, final: float = 0.0) -> LambdaLR:
    """Rise linearly, stay, then fall linearly at the end (warm-up, stable, decay; Hu et al., 2024).

    Args:
        optimizer, steps, warmup, final: as for `cosine`.
        decay: share of the steps in which the rate falls.
    """
    rise, fall = max(1, round(steps * warmup)), max(1, round(steps * decay))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 1 - (1 - final) * min(1.0, max(0.0, (step - (steps - fall)) / fall))

    return LambdaLR(optimizer, factor)


def linear(optimizer: Optimizer, steps: int, warmup: float = 0.05, final: float = 0.0) -> LambdaLR:
    """Rise linearly, then fall linearly; arguments as for `cosine`."""
    rise = max(1, round(steps * warmup))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 1 - (1 - final) * min(1.0, (step - rise) / max(1, steps - rise))

    return LambdaLR(optimizer, factor)
