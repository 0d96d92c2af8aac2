"""The norm of all gradients, and clipping by it, wherever the ranks hold their parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float | None) -> Tensor:
    """Scale gradients in place so that their norm is at most `limit`; None leaves them as they are.

    PyTorch's own function takes parameters of one device mesh only, and with tensor parallelism there are two.

    Returns:
        the norm before, a scalar that need not be on the host yet.
    """
    meshes: dict[DeviceMesh | None, list[nn.Parameter]] = {}
    for parameter in parameters:
        mesh = parameter.grad.device_mesh if isinstance(parameter.grad, DTensor) else None
        meshes.setdefault(mesh, []).append(parameter)
    norms = [nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]) for group in meshes.values()]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack([whole(n) for n in norms]))
    if limit is not None:
        for group in meshes.values():
            nn.utils.clip_grads_with_norm_(group, limit, norm)
    return norm


def whole(value: Tensor) -> Tensor:
    """Return a tensor as every rank sees it whole; all ranks must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value
