"""Optimizers beyond those that PyTorch gives for a whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from framework.errors import UserError


class Muon(torch.optim.Optimizer):
    """Muon for the matrices of hidden layers (Jordan et al., 2024), AdamW for all other parameters, as one optimizer.

    Updates are scaled to the size of AdamW's (Liu et al., "Muon is Scalable for LLM Training", 2025), so that one
    learning rate and one weight decay serve both.

    Args:
        params: groups of parameters; those with `hidden: False` go to AdamW whole.
        lr: learning rate.
        weight_decay: decoupled.
        momentum: of Muon.
        betas: of AdamW.

    Raises:
        UserError: when no parameter is a matrix of a hidden layer.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 3e-3,
        weight_decay: float = 0.05,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> None:
        matrices, others = [], []
        for group in params:
            options = {k: v for k, v in group.items() if k != "params"}
            hidden = options.pop("hidden", True)
            flat = [p for p in group["params"] if p.ndim == 2 and hidden]
            rest = [p for p in group["params"] if p.ndim != 2 or not hidden]
            matrices += [{"params": flat, **options}] if flat else []
            others += [{"params": rest, **options}] if rest else []
        if not matrices:
            raise UserError("optimizer: Muon works on matrices of hidden layers, and the model has none; use adamw")
        self._muon = torch.optim.Muon(
            matrices, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
        )
        parts = [self._muon.param_groups]
        self._adamw: torch.optim.AdamW | None = None
        if others:
            self._adamw = torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay, betas=betas)
            parts.append(self._adamw.param_groups)
        super().__init__([group for part in parts for group in part], {})
        self._share()

    def _share(self) -> None:
        """Have both parts work on this optimizer's groups and state."""
        count = len(self._muon.param_groups)
        self._muon.param_groups, self._muon.state = self.param_groups[:count], self.state
        if self._adamw is not None:
            self._adamw.param_groups, self._adamw.state = self.param_groups[count:], self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Step once; `closure` computes the loss and its gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._muon.step()
        if self._adamw is not None:
            self._adamw.step()
        return loss
