"""Several datasets as one stream, each with its weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from framework.errors import DataError

from .batch_transforms import Batch
from .loader import ShardLoader
from .rows import row_keys


class MixedLoader:
    """Gives whole global batches of several loaders in turn, drawn by weight; each goes on from epoch to epoch.

    Which loader gives batch number n is a pure function of the seed and n, the same on every rank; the whole state is
    the loaders' positions, and the stream never ends (see `Steps` for a part of it).

    Args:
        loaders: all with the same rank, world size and micro-batches in a global batch.
        weights: how often each is drawn, relative to the others.
        seed: what the draws depend on.

    Raises:
        DataError: when weights and loaders do not fit each other.
    """

    def __init__(self, loaders: Sequence[ShardLoader], weights: Sequence[float], seed: int = 0) -> None:
        if len(loaders) != len(weights) or not loaders or min(weights) < 0 or not sum(weights) > 0:
            raise DataError(f"{len(loaders)} datasets cannot be mixed by the weights {list(weights)}")
        self.loaders, self.seed = list(loaders), seed
        self._bounds = np.cumsum(weights) / np.sum(weights)
        self._parts = loaders[0].local_batch // loaders[0].micro_batch
        self.given = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the batches given, and every loader's position."""
        return {"given": self.given, "loaders": [loader.state_dict() for loader in self.loaders]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""
        self.given = state["given"]
        for loader, position in zip(self.loaders, state["loaders"], strict=True):
            loader.load_state_dict(position)

    def __len__(self) -> int:
        """The number of batches of an epoch: those of all loaders' epochs together."""
        return sum(len(loader) for loader in self.loaders)

    @property
    def position(self) -> int:
        """The batches given since the start."""
        return self.given

    def chosen(self, step: int) -> int:
        """Return the number of the loader that gives global batch `step`."""
        draw = row_keys(self.seed, 0, step, 1)[0] / 2.0**64
        return min(int(np.searchsorted(self._bounds, draw, side="right")), len(self.loaders) - 1)

    def describe_next(self) -> dict[str, Any]:
        """Return which rows, of which dataset, make the global batch that comes next."""
        return self.loaders[self.chosen(self.given // self._parts)].describe_next()

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches without end."""
        streams: list[Iterator[Batch]] = [iter(loader) for loader in self.loaders]
        while True:
            number = self.chosen(self.given // self._parts)
            batch = next(streams[number], None)
            if batch is None:  # its epoch is over; the loader stands at the next
                streams[number] = iter(self.loaders[number])
                batch = next(streams[number])
            self.given += 1
            yield batch
