"""Unstructured and semi-structured sparsity: single weights become zero, in steps, with training between them.

The schedule is that of Zhu & Gupta, "To prune, or not to prune" (2017): after step t of n the sparsity is
final * (1 - (1 - t/n)^3). Weights are ranked by magnitude: over all layers at once, or four by four (2:4, the pattern
that NVIDIA's sparse tensor cores run).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from framework.errors import UserError
from framework.record.console import say
from framework.training.fit import fit
from framework.training.workbench import Workbench

from .layers import chosen_layers
from .passes import Compressed

_KINDS = (nn.Conv2d, nn.Linear)
_GROUP, _KEPT_OF_GROUP = 4, 2


class _Masked(nn.Module):
    """A weight of which some elements are zero, and stay so while it is trained."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


@dataclass(frozen=True)
class MagnitudePruning:
    """Sets the smallest weights of convolutions and linear layers to zero, a share of all of them together.

    Args:
        sparsity: the share.
        steps: in how many steps.
        finetune: how long to train after each step, as a share of the experiment's own training; 0 for not at all.
        learning_rate_scale: factor on `optimizer.lr` for that.
        layers: names (globs) of layers; None for all.
    """

    sparsity: float = 0.8
    steps: int = 3
    finetune: float = 0.2
    learning_rate_scale: float = 1.0
    layers: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise UserError(f"compress.magnitude_pruning.sparsity: must lie between 0 and 1, and it is {self.sparsity}")

    def apply(self, model: nn.Module, bench: Workbench, folder: Path) -> Compressed:
        chosen = chosen_layers(model, _KINDS, self.layers, "magnitude_pruning")
        for step in range(1, self.steps + 1):
            share = self.sparsity * (1 - (1 - step / self.steps) ** 3)
            masks = global_masks({name: layer.weight.detach() for name, layer in chosen.items()}, share)
            _train_masked(model, chosen, masks, bench, folder / str(step), self.finetune, self.learning_rate_scale)
            say(f"  magnitude_pruning: {share:.1%} of the weights are zero")
        return Compressed(model.eval())

    def restore(self, model: nn.Module, state: Mapping[str, Any]) -> nn.Module:
        return model


@dataclass(frozen=True)
class SemiStructuredPruning:
    """Sets the two smallest of every four neighbouring input weights of linear layers to zero (2:4).

    Args:
        finetune, learning_rate_scale, layers: see `MagnitudePruning`.
    """

    finetune: float = 0.4
    learning_rate_scale: float = 1.0
    layers: Sequence[str] | None = None

    def apply(self, model: nn.Module, bench: Workbench, folder: Path) -> Compressed:
        found = chosen_layers(model, (nn.Linear,), self.layers, "semi_structured_pruning")
        chosen = {name: layer for name, layer in found.items() if layer.in_features % _GROUP == 0}
        if not chosen:
            raise UserError("compress.semi_structured_pruning: no layer's inputs are a multiple of four")
        masks = {name: two_of_four(layer.weight.detach()) for name, layer in chosen.items()}
        _train_masked(model, chosen, masks, bench, folder, self.finetune, self.learning_rate_scale)
        say(f"  semi_structured_pruning: {len(chosen)} layers, two of four weights zero")
        return Compressed(model.eval())

    def restore(self, model: nn.Module, state: Mapping[str, Any]) -> nn.Module:
        return model


def global_masks(weights: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return masks that are zero for a share of all weights, the smallest; each of its weight's shape."""
    magnitudes = torch.cat([weight.abs().flatten() for weight in weights.values()])
    count = round(share * magnitudes.numel())
    threshold = magnitudes.kthvalue(count).values if count else magnitudes.new_tensor(-1.0)
    return {name: (weight.abs() > threshold).to(weight.dtype) for name, weight in weights.items()}


def two_of_four(weight: Tensor) -> Tensor:
    """Return a mask [out, in] that keeps the two largest of every four neighbours along the inputs."""
    groups = weight.abs().view(-1, _GROUP)
    kept = groups.topk(_KEPT_OF_GROUP, dim=1).indices
    return torch.zeros_like(groups).scatter_(1, kept, 1.0).view_as(weight)


def _train_masked(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    masks: Mapping[str, Tensor],
    bench: Workbench,
    folder: Path,
    length: float,
    learning_rate_scale: float,
) -> None:
    """Train a model of which some weights stay zero, and leave them as plain weights."""
    for name, layer in layers.items():
        parametrize.register_parametrization(layer, "weight", _Masked(masks[name]))
    try:
        if length:
            fit(
                bench,
                model,
                folder,
                what="fine-tuning",
                length=length,
                learning_rate_scale=learning_rate_scale,
            )
    finally:
        for layer in layers.values():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
