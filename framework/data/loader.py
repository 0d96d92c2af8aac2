"""Batches of tensors from shards: bulk reads ahead in threads, one gather a batch, no Python for each sample.

Usable on its own:

    loader = ShardLoader("outputs/datasets/digits/<version>", "train", batch_size=64)
    for batch in loader:
        ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from framework.errors import DataError

from .batch_transforms import Batch, BatchTransform
from .order import Order
from .rows import Rows
from .store import ShardReader


class ShardLoader:
    """Iterates over one split, epoch after epoch, in the order of `Order`; its whole state is a position.

    Args:
        folder: the dataset version's folder.
        split: the split's name.
        batch_size: rows of a global batch, over all ranks.
        rank, world_size: which share of every global batch this loader gives.
        micro_batch: rows of a batch it yields; by default its whole share of the global batch.
        seed: what the order is drawn from.
        lanes: see `Order`; must be divisible by `world_size`.
        window_bytes: memory of the shuffle window of all ranks together; two windows are held at a time.
        prefetch: windows read ahead.
        transforms: applied to each batch, in order.

    Raises:
        DataError: when the split has fewer rows than one global batch, or a shard is not as it was written.
    """

    def __init__(
        self,
        folder: Path | str,
        split: str,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        micro_batch: int | None = None,
        seed: int = 0,
        lanes: int = 8,
        window_bytes: int = 8 * 1024 * 1024,
        prefetch: int = 1,
        transforms: Sequence[BatchTransform] = (),
    ) -> None:
        self.reader = ShardReader(Path(folder), split)
        self.batch_size, self.rank, self.world_size, self.seed = batch_size, rank, world_size, seed
        self.local_batch = batch_size // world_size
        self.micro_batch = micro_batch or self.local_batch
        self.lanes, self.prefetch, self.transforms = lanes, max(1, prefetch), transforms
        order = self._order(0, window_bytes)
        if order.full_batches == 0:
            raise DataError(
                f"split `{split}` has {self.reader.rows} rows, fewer than one global batch of {batch_size}; "
                "make trainer.global_batch_size smaller"
            )
        if batch_size % world_size or order.lane_count % world_size:
            raise DataError(
                f"a global batch of {batch_size} in {order.lane_count} lanes does not divide among {world_size} ranks"
            )
        if self.local_batch % self.micro_batch:
            raise DataError(f"{self.local_batch} rows a rank do not divide into micro-batches of {self.micro_batch}")
        self._window_bytes = window_bytes
        self.epoch = 0
        self._micro_steps = 0  # micro-batches given in this epoch

    def _order(self, epoch: int, window_bytes: int) -> Order:
        rows_in_window = window_bytes // max(1, self.reader.manifest.row_bytes)
        split = self.reader.split
        order = Order(split.rows, split.chunk_rows, self.batch_size, self.lanes, 1, self.seed, epoch)
        window = rows_in_window // order.lane_count
        return Order(split.rows, split.chunk_rows, self.batch_size, self.lanes, window, self.seed, epoch)

    def __len__(self) -> int:
        """The number of batches in an epoch (the last short global batch is left out)."""
        return self.reader.rows // self.batch_size * (self.local_batch // self.micro_batch)

    @property
    def position(self) -> int:
        """The batches given since the start of the first epoch."""
        return self.epoch * len(self) + self._micro_steps

    def state_dict(self) -> dict[str, int]:
        """Return the position: the epoch, and the global samples given in it."""
        return {"epoch": self.epoch, "consumed": self._micro_steps * self.micro_batch * self.world_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position; nothing before it is read."""
        self.epoch = state["epoch"]
        self._micro_steps = state["consumed"] // (self.micro_batch * self.world_size)
        if self._micro_steps >= len(self):
            self.epoch, self._micro_steps = self.epoch + 1, 0

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the current epoch, then stand at the start of the next."""
        order = self._order(self.epoch, self._window_bytes)
        per_batch = self.local_batch // self.micro_batch
        step = self._micro_steps // per_batch
        with ThreadPoolExecutor(self.prefetch + 1, thread_name_prefix="loader") as pool:
            windows = range(step // order.window_batches, -(-order.full_batches // order.window_batches))
            for index, (buffer, gather) in zip(windows, self._read_ahead(pool, order, windows), strict=True):
                first = index * order.window_batches
                for i in range(step - first, len(gather)):
                    for part in gather[i].split(self.micro_batch)[self._micro_steps % per_batch :]:
                        batch = {name: tensor.index_select(0, part) for name, tensor in buffer.items()}
                        for transform in self.transforms:
                            batch = transform(batch)
                        self._micro_steps += 1
                        if self._micro_steps == len(self):
                            self.epoch, self._micro_steps = self.epoch + 1, 0
                        yield batch
                step = first + len(gather)

    def _read_ahead(
        self, pool: ThreadPoolExecutor, order: Order, windows: range
    ) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        pending: list[Future[Any]] = [pool.submit(self._window, order, i) for i in windows[: self.prefetch]]
        for position, _ in enumerate(windows):
            if position + self.prefetch < len(windows):
                pending.append(pool.submit(self._window, order, windows[position + self.prefetch]))
            yield pending.pop(0).result()

    def _window(self, order: Order, index: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Read one window of this rank's lanes: the rows by field, and for each global batch which of them it takes."""
        own = order.lane_count // self.world_size
        stretches: list[tuple[int, int]] = []
        gathers = []
        offset = 0
        for lane in range(self.rank * own, (self.rank + 1) * own):
            runs, permutation = order.window_of(index, lane)
            stretches += runs
            gathers.append(offset + permutation.reshape(-1, order.lane_batch))
            offset += len(permutation)
        rows = _read_stretches(self.reader, stretches, offset)
        return {n: torch.from_numpy(a) for n, a in rows.items()}, torch.from_numpy(np.concatenate(gathers, axis=1))


class Steps:
    """A whole training as one sequence: the epochs of a loader, end to end.

    Args:
        loader: gives the epochs; its state is the state of the sequence.
        total: batches in all.
    """

    def __init__(self, loader: ShardLoader, total: int) -> None:
        self.loader, self.total = loader, total

    def __len__(self) -> int:
        """The number of batches, those already given included."""
        return self.total

    def state_dict(self) -> dict[str, int]:
        """Return the loader's position."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position."""
        self.loader.load_state_dict(state)

    def __iter__(self) -> Iterator[Batch]:
        """Yield what is left."""
        while (left := self.total - self.loader.position) > 0:
            yield from islice(self.loader, left)


def _read_stretches(reader: ShardReader, stretches: Sequence[tuple[int, int]], total: int) -> Rows:
    """Read stretches of stored rows, one after another, into one buffer for each field."""
    fields = reader.manifest.fields
    buffers = {n: np.empty((total, *f.shape), dtype=f.dtype) for n, f in fields.items()}
    at = 0
    for first, last in stretches:
        for name, buffer in buffers.items():
            reader.read_into(name, first, last, buffer[at : at + last - first])
        at += last - first
    return buffers


class EvalLoader:
    """Iterates over a whole split once, in stored order, never shuffled; each rank takes its share of every batch.

    Args:
        folder: the dataset version's folder.
        split: the split's name.
        batch_size: rows of a batch on one rank.
        rank, world_size: which rows this loader gives.
        transforms: applied to each batch, in order.
    """

    def __init__(
        self,
        folder: Path | str,
        split: str,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        transforms: Sequence[BatchTransform] = (),
    ) -> None:
        self.reader = ShardReader(Path(folder), split)
        bounds = np.linspace(0, self.reader.rows, world_size + 1).astype(int)
        self.first, self.last = int(bounds[rank]), int(bounds[rank + 1])
        self.batch_size, self.transforms = batch_size, transforms

    def __len__(self) -> int:
        """The number of batches."""
        return -(-(self.last - self.first) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield all batches; the last one may be short."""
        for first in range(self.first, self.last, self.batch_size):
            rows = self.reader.read_rows(first, min(first + self.batch_size, self.last))
            batch = {name: torch.from_numpy(array) for name, array in rows.items()}
            for transform in self.transforms:
                batch = transform(batch)
            yield batch
