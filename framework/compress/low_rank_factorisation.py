"""Low-rank factorisation: a layer becomes two thinner ones, whose product is nearest to it (Eckart & Young, 1936)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from framework.errors import UserError
from framework.record.console import say
from framework.training.fit import fit
from framework.training.workbench import Workbench

from .layers import chosen_layers, replace_layer
from .passes import Compressed

_KINDS = (nn.Conv2d, nn.Linear)
_WORTH_IT = 0.01


@dataclass(frozen=True)
class LowRankFactorisation:
    """Splits convolutions and linear layers in two by their singular values, then fine-tunes.

    A layer is left alone where two would have as many parameters as it has.

    Args:
        ratio: share of a layer's parameters that its two factors have together.
        finetune: how long to train afterwards, as a share of the experiment's own training; 0 for not at all.
        learning_rate_scale: factor on `optimizer.lr` for that.
        layers: names (globs) of layers; None for all that hold at least a hundredth of the weights: the others, such as
            the first and the last, save little and cost much.
    """

    ratio: float = 0.5
    finetune: float = 0.4
    learning_rate_scale: float = 1.0
    layers: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise UserError(f"compress.low_rank_factorisation.ratio: must lie between 0 and 1, and it is {self.ratio}")

    def apply(self, model: nn.Module, bench: Workbench, folder: Path) -> Compressed:
        ranks = {}
        chosen = chosen_layers(model, _KINDS, self.layers, "low_rank_factorisation")
        smallest = _WORTH_IT * sum(layer.weight.numel() for layer in chosen.values())
        for name, layer in chosen.items():
            if self.layers is None and layer.weight.numel() < smallest:
                continue
            wide = layer.weight.flatten(1)
            rank = int(self.ratio * wide.numel() / sum(wide.shape))
            if rank < 1 or rank >= min(wide.shape) or (isinstance(layer, nn.Conv2d) and layer.groups > 1):
                continue
            replace_layer(model, name, factorised(layer, rank))
            ranks[name] = rank
        if not ranks:
            raise UserError("compress.low_rank_factorisation: every layer is too small to be split; leave the pass out")
        say(f"  low_rank_factorisation: {len(ranks)} layers split, ranks {', '.join(map(str, ranks.values()))}")
        if self.finetune:
            fit(
                bench,
                model,
                folder,
                what="fine-tuning",
                length=self.finetune,
                learning_rate_scale=self.learning_rate_scale,
            )
        return Compressed(model.eval(), {"ranks": ranks})

    def restore(self, model: nn.Module, state: Mapping[str, Any]) -> nn.Module:
        for name, rank in state["ranks"].items():
            replace_layer(model, name, _two_layers(model.get_submodule(name), rank))
        return model


def factorised(layer: nn.Module, rank: int) -> nn.Sequential:
    """Return two layers whose product is the nearest of that rank to a convolution or linear layer."""
    two = _two_layers(layer, rank)
    assert isinstance(layer, _KINDS)
    left, values, right = torch.linalg.svd(layer.weight.detach().flatten(1).double(), full_matrices=False)
    root = values[:rank].sqrt()
    first, second = two[0], two[1]
    assert isinstance(first, _KINDS) and isinstance(second, _KINDS)
    with torch.no_grad():
        first.weight.copy_((root[:, None] * right[:rank]).view_as(first.weight))
        second.weight.copy_((left[:, :rank] * root).view_as(second.weight))
        if layer.bias is not None and second.bias is not None:
            second.bias.copy_(layer.bias)
    return two


def _two_layers(layer: nn.Module, rank: int) -> nn.Sequential:
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Sequential(
            nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=bias)
        )
    assert isinstance(layer, nn.Conv2d)
    first = nn.Conv2d(
        layer.in_channels,
        rank,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        bias=False,
        padding_mode=layer.padding_mode,
    )
    return nn.Sequential(first, nn.Conv2d(rank, layer.out_channels, 1, bias=bias))
