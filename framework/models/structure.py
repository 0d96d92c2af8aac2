"""The shape of a model that was changed after it was built: written down, and brought back on a fresh one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from framework.errors import UserError

Structure = dict[str, dict[str, Any]]


def describe_structure(model: nn.Module) -> Structure:
    """Return, for each module by name, its whole-number attributes and the shapes of its own tensors."""
    return {
        name: {
            "attributes": {k: v for k, v in vars(module).items() if type(v) is int},
            "shapes": {n: list(t.shape) for n, t in _tensors(module).items()},
        }
        for name, module in model.named_modules()
    }


def structure_changes(before: Structure, after: Structure) -> Structure:
    """Return the modules whose attributes or shapes differ, as they are after the change."""
    return {name: entry for name, entry in after.items() if before.get(name) != entry}


def apply_structure(model: nn.Module, changes: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """Give the modules of a freshly built model the attributes and shapes of a changed one; values are undefined.

    Raises:
        UserError: when the model has no such module or tensor.
    """
    modules = dict(model.named_modules())
    for name, entry in changes.items():
        if name not in modules:
            raise UserError(f"the model has no module `{name}`; its config is not the one the structure came from")
        module = modules[name]
        for attribute, value in entry["attributes"].items():
            setattr(module, attribute, value)
        tensors = _tensors(module)
        for tensor_name, shape in entry["shapes"].items():
            old = tensors.get(tensor_name)
            if old is None:
                raise UserError(f"the model has no tensor `{name}.{tensor_name}`")
            if list(old.shape) == list(shape):
                continue
            new = torch.empty(shape, dtype=old.dtype, device=old.device)
            setattr(module, tensor_name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
    return model


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return dict(own)
