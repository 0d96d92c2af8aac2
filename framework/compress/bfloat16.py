"""Cast to bfloat16: half the bytes, the range of float32, eight bits of precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from framework.errors import UserError
from framework.training.workbench import Workbench

from .passes import Compressed


class InBfloat16(nn.Module):
    """A model that works in bfloat16 between inputs and outputs in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.to(torch.bfloat16)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the model's outputs in float32; whole numbers go in as they are."""
        return self.model(*(x.to(torch.bfloat16) if x.is_floating_point() else x for x in inputs)).float()


@dataclass(frozen=True)
class Bfloat16:
    """Casts all weights to bfloat16; the last pass."""

    def apply(self, model: nn.Module, bench: Workbench, folder: Path) -> Compressed:
        if isinstance(model, torch.fx.GraphModule):
            raise UserError("compress: bfloat16 cannot follow a pass that makes a captured graph")
        return Compressed(InBfloat16(model).eval())

    def restore(self, model: nn.Module, state: Mapping[str, Any]) -> nn.Module:
        return InBfloat16(model)
