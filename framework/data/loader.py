"""Batches of tensors from shards: bulk reads ahead in threads, one gather a batch, no Python for each sample.

Usable on its own:

    loader = ShardLoader("outputs/datasets/digits/<version>", "train", batch_size=64)
    for batch in loader:
        ...

1. `Order` says which rows a window of each lane holds, and in which order batches take them.
2. Reader threads take chunk after chunk, checked and decoded (`ShardReader`), and put its rows where batches want them:
   while the chunk is in the processor's cache, so that memory sees each row once.
3. While they fill the next window, batches are views of this one.
4. Batch transforms follow.

There are few and long calls on purpose: what costs here is handing the interpreter's lock from thread to thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from framework.config.machine import cpu_count
from framework.errors import DataError

from .batch_transforms import Batch, BatchTransform, RandomTransform, apply
from .manifest import offsets_of, values_of
from .order import Order
from .ragged import bounds, spans
from .remote import ShardCache
from .rows import row_keys
from .store import ShardReader
from .windows import Lane, ReadAhead, Window

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
        window_bytes: half of the memory that all ranks together use: two shuffle windows, a chunk for each lane, and a
            batch or two. Fields that fit in 1/16 of it are kept in memory whole. Who keeps a batch keeps its window.
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
        self.reader, self.split = ShardReader(location, split, cache=cache), split
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
        self.windows: list[Window] = []
        bounds = np.linspace(0, self.reader.rows % batch_size if keep_last else 0, world_size + 1).astype(int)
        self._tail = range(bounds[rank], bounds[rank + 1])  # this rank's rows of the last, short batch
        limit = window_bytes // RESIDENT_SHARE
        small = [n for n, a in self.reader.arrays.items() if a.row_bytes * a.rows <= limit]
        self.resident = {n: self.reader.read(n, 0, self.reader.arrays[n].rows) for n in small}

    def order(self, epoch: int) -> Order:
        """Return the order of an epoch; the same for any number of ranks."""
        split, row_bytes = self.reader.split, self.reader.row_bytes
        group = split.shard_rows // split.chunk_rows if self.reader.manifest.shuffled else 1
        order = Order(split.rows, split.chunk_rows, group, self.batch_size, self.lanes, 1, self.seed, epoch)
        beside = order.lane_count * split.chunk_rows + 2 * self.batch_size
        window = max(0, self.window_bytes * 7 // 8 // row_bytes - beside // 2) // order.lane_count
        return replace(order, window=window)

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

    def describe_next(self) -> dict[str, Any]:
        """Return which stored rows, of all ranks, make the global batch that comes next, and where they lie."""
        manifest, step = self.reader.manifest, self._micro_steps // (self.local_batch // self.micro_batch)
        return {
            "dataset": f"{manifest.name}/{manifest.version}",
            "split": self.split,
            "epoch": self.epoch,
            "rows": self.order(self.epoch).rows_of(step).tolist(),
        }

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the current epoch, then stand at the start of the next."""
        order = self.order(self.epoch)
        per_batch = self.local_batch // self.micro_batch
        step, skip = divmod(self._micro_steps, per_batch)
        with (
            nullcontext() if self._is_resident else ThreadPoolExecutor(self.threads, "reader") as readers,
            closing(ReadAhead(self, order, readers)) as ahead,
        ):
            while step < order.full_batches:
                number = step // order.window_batches
                first = number * order.window_batches
                last = min(first + order.window_batches, order.full_batches)
                window = ahead.take(number)
                if last - first == 1:
                    ahead.start(number + 1)
                while step < last:
                    for part in range(skip, per_batch):
                        at = (step - first) * self.local_batch + part * self.micro_batch
                        place = step * self.batch_size + self.rank * self.local_batch + part * self.micro_batch
                        batch = self._make_batch(order, window, slice(at, at + self.micro_batch), place)
                        self._step()
                        yield batch
                        ahead.start(number + 1)  # now that nobody looks at the window before this one
                    step, skip = step + 1, 0
        if self._tail and self.epoch == order.epoch:
            yield from self._short_batches(order, self._micro_steps - order.full_batches * per_batch)

    @property
    def _is_resident(self) -> bool:
        return self.resident.keys() == self.reader.arrays.keys()

    def _short_batches(self, order: Order, given: int) -> Iterator[Batch]:
        """Yield what this rank has of the rows that do not fill a global batch, after `given` batches of them."""
        runs, permutation = order.tail()
        window = Window(self.reader, len(permutation), 1)
        Lane(self.reader, 0, self.resident).read(runs, np.argsort(permutation), window.arrays, 0)
        for start in self._tail[given * self.micro_batch :: self.micro_batch]:
            taken = slice(start, min(start + self.micro_batch, self._tail.stop))
            batch = self._make_batch(order, window, taken, order.full_batches * self.batch_size + start)
            self._step()
            yield batch

    def _step(self) -> None:
        self._micro_steps += 1
        if self._micro_steps == len(self):
            self.epoch, self._micro_steps = self.epoch + 1, 0

    def _make_batch(self, order: Order, window: Window, taken: slice, place: int) -> Batch:
        """Take rows of a window, and transform them; `place` is the first one's in the epoch."""
        batch = {}
        for name, spec in self.reader.manifest.fields.items():
            if not spec.ragged:
                batch[name] = self._give(window.arrays[name][taken])
                continue
            chosen = window.arrays[offsets_of(name)][taken]
            lengths = chosen[:, 1] - chosen[:, 0]
            index = spans(chosen[:, 0], lengths)
            batch[values_of(name)] = self._give(np.take(window.arrays[values_of(name)], index, axis=0))
            batch[offsets_of(name)] = torch.from_numpy(bounds(lengths))
        count = taken.stop - taken.start
        return apply(self.transforms, batch, lambda: row_keys(self.seed, order.epoch, place, count))

    def _give(self, rows: npt.NDArray) -> torch.Tensor:
        found = torch.from_numpy(rows)
        return found.pin_memory() if self.pin_memory else found


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

    def describe_next(self) -> dict[str, Any]:
        """Return `dataset`, `split`, `epoch` and `rows` of the global batch that comes next."""


class Steps:
    """A whole training as one sequence: the epochs of a loader, end to end.

    Args:
        loader: gives the epochs; its state is the state of the sequence.
        total: batches in all.
    """

    def __init__(self, loader: Resumable, total: int) -> None:
        self.loader, self.total = loader, total
        self.waited = 0.0
        """Seconds that batches were waited for, so far."""

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
            began = perf_counter()
            for batch in islice(self.loader, left):
                self.waited += perf_counter() - began
                yield batch
                began = perf_counter()


class EvalLoader:
    """Iterates over a whole split once, in stored order, never shuffled; each rank takes its share of every batch.

    Args:
        location: the dataset version's folder, or its URL.
        split: the split's name.
        batch_size: rows of a batch on one rank, at most.
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
        count = -(-int(np.diff(bounds).max()) // batch_size)
        self._bounds = np.linspace(bounds[rank], bounds[rank + 1], count + 1).astype(int).tolist()
        self.transforms = transforms
        if self.reader.rows < world_size:
            raise DataError(f"split `{split}` has {self.reader.rows} rows, fewer than the {world_size} ranks")

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[Batch]:
        """Yield all batches, as many on every rank, which differ in size by one row at most."""
        for first, last in pairwise(self._bounds):
            yield self.rows(first, last)

    def rows(self, first: int, last: int) -> Batch:
        """Return rows `first` to `last` (exclusive) of the split as a batch."""
        rows = self.reader.read_rows(first, min(last, self.reader.rows))
        return apply(self.transforms, {name: torch.from_numpy(array) for name, array in rows.items()}, None)
