"""What a compression pass is, and what is said of a model before and after it.

To add one, write a class with the methods of `CompressionPass` and a YAML in `conf/compress` whose first line is
`# @package compress.<name>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from framework.training.workbench import Workbench


@dataclass(frozen=True)
class Compressed:
    """What a pass gives: the model, and what `restore` needs to bring its structure back (plain values)."""

    model: nn.Module
    state: Mapping[str, Any] = field(default_factory=dict)


class CompressionPass(Protocol):
    """From a model to a smaller or faster one."""

    def apply(self, model: nn.Module, bench: Workbench, folder: Path) -> Compressed:
        """Compress a model that may be changed in place.

        Args:
            model: in evaluation mode, on the CPU.
            bench: data and task; passes see the train and validation splits only.
            folder: for checkpoints of fine-tuning.

        Raises:
            UserError: when the model has nothing that the pass could work on.
        """

    def restore(self, model: nn.Module, state: Mapping[str, Any]) -> nn.Module:
        """Bring the structure back on a freshly built model, whose weights are loaded afterwards.

        Not called when the pass makes a captured graph (`torch.fx.GraphModule`), which is saved as a program.
        """


@dataclass(frozen=True)
class Size:
    """How big a model is: parameters, those that are not zero, bytes of its tensors, multiply-adds for one row."""

    parameters: int
    nonzero: int
    bytes: int
    macs: int


def size_of_model(model: nn.Module, example: Sequence[Tensor]) -> Size:
    """Measure a model.

    Args:
        model: a module, or a captured graph (whose packed constants count as parameters).
        example: its inputs; multiply-adds are those of one row of them.
    """
    from torch.utils.flop_counter import FlopCounterMode

    unique = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers()) if t.numel()}
    weights = {t.data_ptr(): t for t in model.parameters() if t.numel()}
    if isinstance(model, torch.fx.GraphModule):
        weights = {p: t for p, t in unique.items() if t.numel() > 1}
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(*example)
    return Size(
        parameters=sum(t.numel() for t in weights.values()),
        nonzero=sum(int(t.count_nonzero()) for t in weights.values()),
        bytes=sum(t.numel() * t.element_size() for t in unique.values()),
        macs=counter.get_total_flops() // 2 // len(example[0]),
    )
