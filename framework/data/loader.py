"""Batches of tensors from shards: bulk reads ahead in threads, one gather a batch, no Python for each sample.

Usable on its own:

    loader = ShardLoader("outputs/datasets/digits/<version>", "train", batch_size=64)
    for batch in loader:
        ...

1. `Order` says which rows a window of each lane holds, and in which order batches take them.
2. Reader threads fill the window: whole chunks, checked and decoded straight into place (`ShardReader`).
3. While they fill the next one, batches are made from this one: one copy of rows by index for each field.
4. Batch transforms follow.

There are few and long calls on purpose: what costs here is handing the interpreter's lock from thread to thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from framework.config.resolvers import cpu_count
from framework.errors import DataError

from .batch_transforms import Batch, BatchTransform, RandomTransform, apply
from .manifest import offsets_of, values_of
from .order import Order
from .ragged import bounds, spans
from .remote import ShardCache
from .rows import Rows, row_keys
from .store import ShardReader

RESIDENT_SHARE = 16


class ShardLoader:
    """Iterates over one split, epoch after epoch, in the order of `Order`; its whole state is a position.

    Args:
        location: the dataset version's folder, or its URL.
        split: the split's name.
        batch_size: rows of a global batch, over all ranks.
        rank, world_size: which share of every global batch this loader gives.
        micro_batch: rows of a batch it yields; by default its whole share of the global batch.
        seed: what the order and random transforms are drawn from.
        lanes: see `Order`; must be divisible by `world_size`.
        window_bytes: half of the memory that all ranks together use: two shuffle windows, the chunks that reach
            from one into the next, and a batch or two. Fields that fit in 1/16 of it are kept in memory whole.
        threads: that read and decode; by default one for each core, at most 8.
        transforms: applied to each batch, in order.
        pin_memory: give batches in page-locked memory, for faster copies to a GPU.
        keep_last: end an epoch with the short batch of rows that do not fill one, shared among the ranks as far as
            it goes; otherwise they are left out.
        cache: where shards behind a URL are kept.

    Raises:
        DataError: when the split has fewer rows than one global batch, or a shard is not as it was written.
    """

    def __init__(
        self,
        location: Path | str,
        split: str,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        micro_batch: int | None = None,
        seed: int = 0,
        lanes: int = 8,
        window_bytes: int = 32 * 1024 * 1024,
        threads: int | None = None,
        transforms: Sequence[BatchTransform | RandomTransform] = (),
        pin_memory: bool = False,
        keep_last: bool = False,
        cache: ShardCache | None = None,
    ) -> None:
        self.reader = ShardReader(location, split, cache=cache)
        self.batch_size, self.rank, self.world_size, self.seed = batch_size, rank, world_size, seed
        self.local_batch = batch_size // world_size
        self.micro_batch = micro_batch or self.local_batch
        self.lanes, self.window_bytes, self.transforms = lanes, window_bytes, transforms
        self.threads, self.pin_memory = threads or min(8, cpu_count()), pin_memory
        order = self.order(0)
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
        self.epoch = 0
        self._micro_steps = 0  # micro-batches given in this epoch
        self._free_buffers: list[tuple[Rows, Rows]] = []
        bounds = np.linspace(0, self.reader.rows % batch_size if keep_last else 0, world_size + 1).astype(int)
        self._tail = range(bounds[rank], bounds[rank + 1])  # this rank's rows of the last, short batch
        limit = window_bytes // RESIDENT_SHARE
        small = [n for n, a in self.reader.arrays.items() if a.row_bytes * a.rows <= limit]
        self._resident = {n: self.reader.read(n, 0, self.reader.arrays[n].rows) for n in small}

    def order(self, epoch: int) -> Order:
        """Return the order of an epoch; the same for any number of ranks."""
        split, row_bytes = self.reader.split, self.reader.row_bytes
        order = Order(split.rows, split.chunk_rows, self.batch_size, self.lanes, 1, self.seed, epoch)
        beside = order.lane_count * split.chunk_rows + 2 * self.batch_size
        window = max(0, self.window_bytes * 7 // 8 // row_bytes - beside // 2) // order.lane_count
        return Order(split.rows, split.chunk_rows, self.batch_size, self.lanes, window, self.seed, epoch)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        full = self.reader.rows // self.batch_size * (self.local_batch // self.micro_batch)
        return full + -(-len(self._tail) // self.micro_batch)

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
        order = self.order(self.epoch)
        per_batch = self.local_batch // self.micro_batch
        step, skip = divmod(self._micro_steps, per_batch)
        with ThreadPoolExecutor(self.threads, thread_name_prefix="reader") as readers:
            for first, rows, taken in self._windows(readers, order, step // order.window_batches):
                for i in range(step - first, len(taken)):
                    for part in range(skip, per_batch):
                        here = slice(part * self.micro_batch, (part + 1) * self.micro_batch)
                        place = (first + i) * self.batch_size + self.rank * self.local_batch + here.start
                        batch = self._make_batch(order, rows, taken[i][here], place)
                        self._step()
                        yield batch
                    skip = 0
                step = first + len(taken)
        if self._tail and self.epoch == order.epoch:
            yield from self._short_batches(order, self._micro_steps - order.full_batches * per_batch)

    def _short_batches(self, order: Order, given: int) -> Iterator[Batch]:
        """Yield what this rank has of the rows that do not fill a global batch, after `given` batches of them."""
        runs, permutation = order.tail()
        rows = _empty_rows(self.reader, len(permutation))
        _Lane(self.reader, 0, self._resident).read(runs, rows, 0)
        for start in self._tail[given * self.micro_batch :: self.micro_batch]:
            taken = permutation[start : min(start + self.micro_batch, self._tail.stop)]
            batch = self._make_batch(order, rows, taken, order.full_batches * self.batch_size + start)
            self._step()
            yield batch

    def _step(self) -> None:
        self._micro_steps += 1
        if self._micro_steps == len(self):
            self.epoch, self._micro_steps = self.epoch + 1, 0

    def _make_batch(self, order: Order, rows: Rows, taken: npt.NDArray[np.int64], place: int) -> Batch:
        """Copy rows by index, and transform them; `place` is the first one's in the epoch."""
        batch = {}
        for name, spec in self.reader.manifest.fields.items():
            if not spec.ragged:
                batch[name] = self._gather(rows[name], taken)
                continue
            chosen = rows[offsets_of(name)][taken]
            lengths = chosen[:, 1] - chosen[:, 0]
            batch[values_of(name)] = self._gather(rows[values_of(name)], spans(chosen[:, 0], lengths))
            batch[offsets_of(name)] = torch.from_numpy(bounds(lengths))
        return apply(self.transforms, batch, lambda: row_keys(self.seed, order.epoch, place, len(taken)))

    def _gather(self, array: npt.NDArray, taken: npt.NDArray[np.int64]) -> torch.Tensor:
        out = torch.empty((len(taken), *array.shape[1:]), dtype=_torch_dtype(array), pin_memory=self.pin_memory)
        np.take(array, taken, axis=0, out=out.numpy(), mode="clip")  # "clip": straight into place
        return out

    def _windows(
        self, readers: ThreadPoolExecutor, order: Order, first: int
    ) -> Iterator[tuple[int, Rows, npt.NDArray[np.int64]]]:
        """Yield the windows from number `first` on; while one is used, the next is read into the other of two buffers.

        Yields:
            the window's first step, its rows, and the rows that each step takes, [steps, rows of a step].
        """
        own = order.lane_count // self.world_size
        rows = order.window_batches * order.lane_batch
        buffers = (
            self._free_buffers.pop()
            if self._free_buffers
            else (_empty_rows(self.reader, rows, own), _empty_rows(self.reader, rows, own))
        )
        lanes = [_Lane(self.reader, lane, self._resident) for lane in range(self.rank * own, (self.rank + 1) * own)]
        count = -(-order.full_batches // order.window_batches)

        def start(window: int) -> tuple[list[Future[None]], npt.NDArray[np.int64]]:
            tasks, taken, offset = [], [], 0
            for i, lane in enumerate(lanes):
                runs, permutation = order.window_of(window, lane.number)
                tasks.append(readers.submit(lane.read, runs, buffers[window % 2], offset, i / own))
                taken.append(offset + permutation.reshape(-1, order.lane_batch))
                offset += len(permutation)
            return tasks, np.concatenate(taken, axis=1)

        try:
            ahead = start(first) if first < count else None
            for window in range(first, count):
                assert ahead is not None
                tasks, taken = ahead
                for task in tasks:
                    task.result()
                ahead = start(window + 1) if window + 1 < count else None
                yield window * order.window_batches, buffers[window % 2], taken
        finally:  # the readers have ended: nobody writes there any more
            self._free_buffers.append(buffers)


def _torch_dtype(array: npt.NDArray) -> torch.dtype:
    return torch.from_numpy(array[:0]).dtype


def _empty_rows(reader: ShardReader, rows: int, lanes: int = 1) -> Rows:
    """Return memory for `rows` rows of each of so many lanes; for ragged values, what they may take at most."""
    found = {n: reader.empty(n, rows * lanes) for n, spec in reader.manifest.fields.items() if not spec.ragged}
    chunks = rows // reader.split.chunk_rows + 3  # begun at both ends, and the split's last, which may be short
    for name, size in reader.split.chunk_values.items():
        found[offsets_of(name)] = reader.empty(offsets_of(name), rows * lanes)
        found[values_of(name)] = reader.empty(values_of(name), chunks * size * lanes)
    return found


class _Lane:
    """Reads the windows of one lane, one after another; a chunk that reaches into the next window is kept for it.

    Args:
        reader: of the split.
        number: which lane.
        resident: arrays that are in memory.
    """

    def __init__(self, reader: ShardReader, number: int, resident: Rows) -> None:
        self.reader, self.number, self.resident = reader, number, resident
        self._kept = {n: reader.empty(n, a.chunk_rows) for n, a in reader.arrays.items() if n not in resident}
        self._kept_chunk = dict.fromkeys(self._kept, -1)

    def read(self, runs: Sequence[tuple[int, int]], buffers: Rows, at: int, share: float = 0.0) -> None:
        """Read runs of stored rows, each within a chunk, one after another into the buffers.

        Args:
            runs: first and last row (exclusive) of each.
            buffers: arrays by name.
            at: the first row there.
            share: of the memory for ragged values that is before this lane's.
        """
        ragged = self.reader.split.chunk_values
        values_at = {name: round(len(buffers[values_of(name)]) * share) for name in ragged}
        for first, last in runs:
            for name, spec in self.reader.manifest.fields.items():
                if not spec.ragged:
                    self._read(name, first, last, buffers[name][at:])
                    continue
                offsets = buffers[offsets_of(name)][at : at + last - first]
                self._read(offsets_of(name), first, last, offsets)
                begin, end, to = int(offsets[0, 0]), int(offsets[-1, 1]), values_at[name]
                self._read(values_of(name), begin, end, buffers[values_of(name)][to:])
                offsets += to - begin
                values_at[name] = to + end - begin
            at += last - first

    def _read(self, name: str, first: int, last: int, out: npt.NDArray) -> None:
        """Read elements of an array that lie within a chunk to the front of `out`."""
        if first == last:
            return
        if name in self.resident:
            out[: last - first] = self.resident[name][first:last]
            return
        size = self.reader.arrays[name].chunk_rows
        chunk, offset = divmod(first, size)
        if last - first == size:
            self.reader.read_chunk(name, chunk, out[:size])
            return
        if self._kept_chunk[name] != chunk:
            self._kept_chunk[name] = -1
            self.reader.read_chunk(name, chunk, self._kept[name])
            self._kept_chunk[name] = chunk
        out[: last - first] = self._kept[name][offset : offset + last - first]


class Resumable(Protocol):
    """A loader whose whole state is a position, which it can be brought to."""

    @property
    def position(self) -> int:
        """The batches given since the start."""

    def __len__(self) -> int:
        """The batches of an epoch."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches from the position on, to the end of the epoch or further."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""


class Steps:
    """A whole training as one sequence: the epochs of a loader, end to end.

    Args:
        loader: gives the epochs; its state is the state of the sequence.
        total: batches in all.
    """

    def __init__(self, loader: Resumable, total: int) -> None:
        self.loader, self.total = loader, total

    def __len__(self) -> int:
        """The number of batches, those already given included."""
        return self.total

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's position."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""
        self.loader.load_state_dict(state)

    def __iter__(self) -> Iterator[Batch]:
        """Yield what is left."""
        while (left := self.total - self.loader.position) > 0:
            yield from islice(self.loader, left)


class EvalLoader:
    """Iterates over a whole split once, in stored order, never shuffled; each rank takes its share of every batch.

    Args:
        location: the dataset version's folder, or its URL.
        split: the split's name.
        batch_size: rows of a batch on one rank.
        rank, world_size: which rows this loader gives.
        transforms: applied to each batch, in order.
        cache: where shards behind a URL are kept.
    """

    def __init__(
        self,
        location: Path | str,
        split: str,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        transforms: Sequence[BatchTransform | RandomTransform] = (),
        cache: ShardCache | None = None,
    ) -> None:
        self.reader = ShardReader(location, split, cache=cache)
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
            yield apply(self.transforms, {name: torch.from_numpy(array) for name, array in rows.items()}, None)
