"""What is done to batches of tensors as they leave the loader, and is packed with an exported model as data.

To add one, write a class that is called with a batch and returns it, and a YAML entry in `data.batch_transforms`.
One that draws chance is a `RandomTransform`: it is left out of validation, testing and exports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .rows import mix64

Batch = dict[str, Tensor]
Keys = npt.NDArray[np.uint64]


class BatchTransform(Protocol):
    """From a batch to a batch; vectorised; the same result for the same rows."""

    def __call__(self, batch: Batch) -> Batch:
        """Return the transformed batch."""


@runtime_checkable
class RandomTransform(Protocol):
    """From a batch to a batch, by chance drawn from a key for each row, so that it is the same after a resume."""

    def draw(self, batch: Batch, keys: Keys) -> Batch:
        """Return the transformed batch; `keys` [batch] depend on the seed, the epoch and the row's place in it."""


def apply(
    transforms: Sequence[BatchTransform | RandomTransform], batch: Batch, keys: Callable[[], Keys] | None
) -> Batch:
    """Return a batch after all transforms, in order; without keys, those that draw chance are left out."""
    for i, transform in enumerate(transforms):
        if not isinstance(transform, RandomTransform):
            batch = transform(batch)
        elif keys is not None:
            batch = transform.draw(batch, mix64(keys() ^ np.uint64(i)))
    return batch


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


@dataclass(frozen=True)
class Pad:
    """Turn a ragged field (`<field>.values`, `<field>.offsets`) into one tensor, [batch, length, ...], and lengths.

    Args:
        field: the field; `<field>.lengths`, int64 [batch], comes beside it.
        length: values of a row; longer rows are cut. By default that of the batch's longest row.
            Unsigned numbers of more than 8 bits become int64.
        value: what follows a row that is shorter.
    """

    field: str
    length: int | None = None
    value: float = 0

    def __call__(self, batch: Batch) -> Batch:
        values, offsets = batch[f"{self.field}.values"], batch[f"{self.field}.offsets"]
        if values.dtype in (torch.uint16, torch.uint32, torch.uint64):  # PyTorch does not index these
            values = values.long()
        lengths = offsets[:, 1] - offsets[:, 0]
        length = self.length or int(lengths.max())
        lengths = lengths.clamp(max=length)
        out = values.new_full((len(lengths), length, *values.shape[1:]), self.value)
        inside = torch.arange(length, device=values.device) < lengths[:, None]
        rows, places = inside.nonzero(as_tuple=True)
        out[rows, places] = values[offsets[rows, 0] + places]
        rest = {n: x for n, x in batch.items() if not n.startswith(f"{self.field}.")}
        return {**rest, self.field: out, f"{self.field}.lengths": lengths}


@dataclass(frozen=True)
class RandomFlip:
    """Mirror images left to right.

    Args:
        field: the field, [batch, channels, height, width].
        share: how many of the rows.
    """

    field: str
    share: float = 0.5

    def draw(self, batch: Batch, keys: Keys) -> Batch:
        x = batch[self.field]
        chosen = torch.from_numpy(keys / 2.0**64 < self.share).view(-1, 1, 1, 1)
        return {**batch, self.field: torch.where(chosen, x.flip(-1), x)}


@dataclass(frozen=True)
class RandomCrop:
    """Pad images with zeros on all sides and cut a window of the old size out of each.

    Args:
        field: the field, [batch, channels, height, width].
        padding: pixels on each side, and so the largest shift.
    """

    field: str
    padding: int

    def draw(self, batch: Batch, keys: Keys) -> Batch:
        x = batch[self.field]
        rows, _, height, width = x.shape
        padded = torch.nn.functional.pad(x, [self.padding] * 4)
        shifts = 2 * self.padding + 1
        down, right = (keys % np.uint64(shifts)).astype(np.int64), (mix64(keys) % np.uint64(shifts)).astype(np.int64)
        ys = torch.from_numpy(down)[:, None] + torch.arange(height)
        xs = torch.from_numpy(right)[:, None] + torch.arange(width)
        cut = padded[torch.arange(rows)[:, None, None], :, ys[:, :, None], xs[:, None, :]]  # channels last
        return {**batch, self.field: cut.permute(0, 3, 1, 2).contiguous()}
