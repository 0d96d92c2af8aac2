"""Compiling a model, and computing activations again instead of keeping them: for as long as it is trained.

Both work on the blocks of a model (the elements of its module lists) where it has any: one block is compiled and used
for all that are alike. Neither changes the names of its weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from .blocks import blocks_of


@contextmanager
def accelerated(model: nn.Module, *, compiled: bool, recomputed: bool) -> Iterator[None]:
    """Have a model's blocks compiled, or their activations computed again in the backward pass (Chen et al., 2016).

    Args:
        model: the network.
        compiled: by `torch.compile`, which needs a C++ compiler on CPUs.
        recomputed: keep the inputs of blocks only; less memory, about a third more time.
    """
    blocks = blocks_of(model)
    for block in blocks:
        if recomputed:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if compiled:
            block.compile()
    try:
        yield
    finally:
        for block in blocks:
            if recomputed:
                del block.forward
            if compiled:
                block._compiled_call_impl = None
