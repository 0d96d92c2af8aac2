"""Training linear layers in float8 (Micikevicius et al., "FP8 Formats for Deep Learning", 2022), by torchao."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from framework.errors import UserError

_MULTIPLE = 16


@dataclass(frozen=True)
class Float8:
    """Has linear layers multiply in float8, for as long as a model is trained; weights keep their format and names.

    Args:
        recipe: one scale for a whole tensor (fastest), or for each of its rows (more exact).
        emulate: compute what the hardware would, in 32-bit floats; slow, for trying it where no GPU can.
    """

    recipe: Literal["tensorwise", "rowwise"] = "tensorwise"
    emulate: bool = False

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Swap the linear layers whose sizes are multiples of 16, and put them back at the end.

        Raises:
            UserError: when there are none.
        """
        from torchao.float8 import Float8LinearConfig
        from torchao.float8.float8_linear import Float8Linear

        config = replace(Float8LinearConfig.from_recipe_name(self.recipe), emulate=self.emulate)
        swapped: list[tuple[nn.Module, str, nn.Linear]] = []
        for owner in list(model.modules()):
            for name, child in owner.named_children():
                if type(child) is nn.Linear and not any(n % _MULTIPLE for n in child.weight.shape):
                    swapped.append((owner, name, child))
        if not swapped:
            raise UserError(
                f"precision: {type(model).__name__} has no linear layer whose sizes are multiples of {_MULTIPLE}; "
                "use precision=bf16"
            )
        for owner, name, child in swapped:
            setattr(owner, name, Float8Linear.from_float(child, config=config))
        try:
            yield
        finally:
            for owner, name, child in swapped:
                setattr(owner, name, child)
