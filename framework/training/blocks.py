"""What a model says of its own structure: its blocks, and how its layers can be cut."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from framework.errors import UserError


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the elements of a model's module lists, outermost first; the model itself where it has none."""
    found = [block for module in model.modules() if isinstance(module, nn.ModuleList) for block in module]
    return found or [model]


def tensor_parallel_plan(model: nn.Module) -> Mapping[str, str]:
    """Return which layers of a model are cut, by name (globs): `columns` (of outputs), `rows` (of inputs).

    Raises:
        UserError: when the model does not say.
    """
    plan = getattr(model, "tensor_parallel_plan", None)
    if plan is None:
        raise UserError(
            f"strategy.tensor_parallel: {type(model).__name__} has no method `tensor_parallel_plan`, which says "
            "how its layers are cut; use strategy=fsdp2"
        )
    found: Mapping[str, str] = plan()
    return found
