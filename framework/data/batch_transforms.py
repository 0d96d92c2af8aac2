"""What is done to batches of tensors as they leave the loader, and is packed with an exported model as data.

To add one, write a class that is called with a batch and returns it, and a YAML entry in `data.batch_transforms`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Batch = dict[str, Tensor]


class BatchTransform(Protocol):
    """From a batch to a batch; vectorised; the same result for the same rows."""

    def __call__(self, batch: Batch) -> Batch:
        """Return the transformed batch."""


@dataclass(frozen=True)
class Normalise:
    """Turn a field into float32 as (x - mean) / std, with one mean and std for each channel (or one for all).

    Args:
        field: the field, [batch, channels, ...].
        mean, std: in units of the stored values.
    """

    field: str
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, batch: Batch) -> Batch:
        x = batch[self.field].float()
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean = torch.tensor(self.mean, device=x.device).view(shape)
        std = torch.tensor(self.std, device=x.device).view(shape)
        return {**batch, self.field: (x - mean) / std}


@dataclass(frozen=True)
class NextToken:
    """Turn windows of tokens [batch, length + 1] into inputs and the tokens that follow them, both [batch, length].

    Args:
        field: the field of windows.
        inputs, targets: the names of the new fields, int64.
    """

    field: str = "tokens"
    inputs: str = "tokens"
    targets: str = "next"

    def __call__(self, batch: Batch) -> Batch:
        windows = batch[self.field].long()
        return {**batch, self.inputs: windows[:, :-1], self.targets: windows[:, 1:]}
