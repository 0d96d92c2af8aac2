"""Fine-tuning by small additions: LoRA (Hu et al., "Low-Rank Adaptation of Large Language Models", 2021).

The weights of linear layers stay as they are, and the product of two thin matrices, which are trained, is added to
them. Names of the weights do not change; once trained, the product is merged, and the model is what it was before.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.errors import UserError


class LowRankLinear(nn.Linear):
    """A frozen linear layer with a trained addition of low rank; made of a linear layer by `add_low_rank`."""

    lora_a: nn.Parameter  # [rank, inputs]
    lora_b: nn.Parameter  # [outputs, rank]
    scale: float
    dropout: float

    def forward(self, x: Tensor) -> Tensor:  # [..., inputs] -> [..., outputs]
        thin = F.linear(F.dropout(x, self.dropout, self.training), self.lora_a)
        return super().forward(x) + F.linear(thin, self.lora_b) * self.scale


def add_low_rank(
    model: nn.Module,
    rank: int,
    alpha: float = 16.0,
    dropout: float = 0.0,
    layers: Sequence[str] = ("*",),
    whole: Sequence[str] = (),
) -> None:
    """Freeze a model in place, and give its linear layers trained additions, which are zero at first.

    Args:
        model: the network.
        rank: of the additions.
        alpha: the addition is scaled by `alpha / rank`.
        dropout: probability of dropping an element of the addition's input while training.
        layers: names (globs) of the linear layers.
        whole: names (globs) of parameters that are trained themselves, such as those of a new head.

    Raises:
        UserError: when no linear layer is called so.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch(name, pattern) for pattern in whole))
    linear = {n: m for n, m in model.named_modules() if type(m) is nn.Linear}
    chosen = {n: m for n, m in linear.items() if any(fnmatch(n, p) for p in layers) and not m.weight.requires_grad}
    if not chosen:
        raise UserError(f"trainer.lora.layers: no linear layer is called so; there are {', '.join(linear) or 'none'}")
    for layer in chosen.values():
        layer.__class__ = LowRankLinear
        assert isinstance(layer, LowRankLinear)
        a = layer.weight.new_empty(rank, layer.in_features)
        layer.lora_a = nn.Parameter(nn.init.kaiming_uniform_(a, a=sqrt(5)))
        layer.lora_b = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))
        layer.scale, layer.dropout = alpha / rank, dropout


@torch.no_grad()
def merge_low_rank(model: nn.Module) -> None:
    """Add what was trained to the weights, in place, and leave plain linear layers, all trainable."""
    for layer in model.modules():
        if isinstance(layer, LowRankLinear):
            layer.weight += layer.scale * (layer.lora_b @ layer.lora_a)
            del layer.lora_a, layer.lora_b, layer.scale, layer.dropout
            layer.__class__ = nn.Linear
    model.requires_grad_(True)
