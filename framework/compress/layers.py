"""Which layers a pass works on, and putting others in their place."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from typing import TypeVar

import torch
from torch import nn

from framework.errors import UserError

Layer = TypeVar("Layer", bound=nn.Module)


def chosen_layers(
    model: nn.Module, kinds: tuple[type[Layer], ...], layers: Sequence[str] | None, owner: str
) -> dict[str, Layer]:
    """Return a model's layers of some kinds by name, those with tied weights left out.

    Args:
        model: whose.
        kinds: classes of layers.
        layers: names (globs); None for all.
        owner: the pass, named in errors.

    Raises:
        UserError: when there is none, or the model is a captured graph.
    """
    if isinstance(model, torch.fx.GraphModule):
        raise UserError(f"compress: {owner} cannot follow a pass that makes a captured graph; put it before")
    users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, kinds)
        and users[id(module.weight)] == 1
        and (layers is None or any(fnmatch(name, glob) for glob in layers))
    }
    if not found:
        names = ", ".join(kind.__name__ for kind in kinds)
        wanted = "" if layers is None else f" that match {', '.join(layers)}"
        raise UserError(f"compress.{owner}: {type(model).__name__} has no layers ({names}){wanted}; leave the pass out")
    return found


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put another layer in the place of the one of that name."""
    owner, _, attribute = name.rpartition(".")
    parent = model.get_submodule(owner)
    if isinstance(parent, (nn.Sequential, nn.ModuleList)):
        parent[int(attribute)] = layer
    else:
        setattr(parent, attribute, layer)
