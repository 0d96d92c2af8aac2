"""Weight-only quantisation: linear layers keep their weights as int8 or int4 with a scale for each group of inputs.

Weights are turned back into floats as they are used: files and memory shrink, sums are those of floats. Rounding is
symmetric and to nearest (the scheme of Frantar et al., "GPTQ", 2022, without its error feedback).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.errors import UserError
from framework.record.console import say
from framework.training.workbench import Workbench

from .layers import chosen_layers, replace_layer
from .passes import Compressed

_LARGEST = {8: 127, 4: 7}


class QuantisedLinear(nn.Module):
    """A linear layer with integer weights.

    Args:
        inputs, outputs: sizes.
        bits: 8, or 4 (two weights a byte).
        group: how many neighbouring inputs share a scale.
        bias: whether it has one.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, inputs: int, outputs: int, bits: int, group: int, bias: bool) -> None:
        super().__init__()
        self.inputs, self.outputs, self.bits, self.group = inputs, outputs, bits, group
        packed = inputs if bits == 8 else inputs // 2
        self.register_buffer("weight", torch.zeros(outputs, packed, dtype=torch.int8 if bits == 8 else torch.uint8))
        self.register_buffer("scale", torch.ones(outputs, inputs // group))
        self.register_buffer("bias", torch.zeros(outputs) if bias else None)

    @classmethod
    def of(cls, layer: nn.Linear, bits: int, group: int) -> QuantisedLinear:
        """Quantise a linear layer."""
        made = cls(layer.in_features, layer.out_features, bits, group, layer.bias is not None)
        grouped = layer.weight.detach().float().view(layer.out_features, -1, group)
        scale = (grouped.abs().amax(-1) / _LARGEST[bits]).clamp_min(1e-12)
        values = (grouped / scale[..., None]).round().clamp(-_LARGEST[bits], _LARGEST[bits]).flatten(1)
        if bits == 4:
            nibbles = (values + 8).to(torch.uint8)
            made.weight.copy_(nibbles[:, 0::2] | (nibbles[:, 1::2] << 4))
        else:
            made.weight.copy_(values.to(torch.int8))
        made.scale.copy_(scale)
        if made.bias is not None:
            made.bias.copy_(layer.bias.detach())
        return made

    def dequantised(self) -> Tensor:
        """Return the weights as floats, [outputs, inputs]."""
        if self.bits == 4:
            packed = self.weight.float()  # no shifts: some runtimes have none for bytes
            high = torch.floor(packed / 16)
            values = torch.stack((packed - 16 * high, high), dim=-1).flatten(1) - 8.0
        else:
            values = self.weight.float()
        return (values.view(self.outputs, -1, self.group) * self.scale[..., None]).flatten(1)

    def forward(self, x: Tensor) -> Tensor:  # [..., inputs] -> [..., outputs]
        return F.linear(x, self.dequantised(), self.bias)


@dataclass(frozen=True)
class WeightOnly:
    """Quantises the weights of linear layers.

    Args:
        bits: 8 or 4.
        group: how many neighbouring inputs share a scale; a layer whose inputs are no multiple of it has one scale for
            each output.
        layers: names (globs) of layers; None for all.
    """

    bits: int = 8
    group: int = 32
    layers: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.bits not in _LARGEST:
            raise UserError(f"compress: weight-only quantisation has 8 or 4 bits, and not {self.bits}")

    def apply(self, model: nn.Module, bench: Workbench, folder: Path) -> Compressed:
        owner = f"weight_int{self.bits}"
        made: dict[str, list[Any]] = {}
        for name, layer in chosen_layers(model, (nn.Linear,), self.layers, owner).items():
            if self.bits == 4 and layer.in_features % 2:
                continue
            group = self.group if layer.in_features % self.group == 0 else layer.in_features
            replace_layer(model, name, quantised := QuantisedLinear.of(layer, self.bits, group))
            made[name] = [quantised.inputs, quantised.outputs, self.bits, group, quantised.bias is not None]
        if not made:
            raise UserError(f"compress.{owner}: no layer has an even number of inputs; leave the pass out")
        say(f"  {owner}: {len(made)} linear layers")
        return Compressed(model.eval(), {"layers": made})

    def restore(self, model: nn.Module, state: Mapping[str, Any]) -> nn.Module:
        for name, arguments in state["layers"].items():
            replace_layer(model, name, QuantisedLinear(*arguments))
        return model
