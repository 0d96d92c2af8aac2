"""The order of samples: a pure function of the split's layout, the seed and the epoch.

Chunks are permuted and laid end to end as one line of rows. Where rows were shuffled at ingest, it is shards that are
permuted, and chunks within each: so few shards are in use at a time, and a rank needs no others than its own. The line
is cut into equal lanes (the last rows, fewer than a batch, make the short batch). Each lane is read in windows; rows
are permuted within a window. Every global batch takes equally many rows from each lane, and a rank owns whole lanes: so
the global batches are the same for any number of ranks that divides the lanes, a rank reads only its own share, and the
state of a loader is a single position that can be reached without reading what lies before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import gcd

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Order:
    """The order of one epoch.

    Args:
        rows: rows of the split.
        chunk_rows: rows of a chunk (the last chunk may be shorter).
        group: so many chunks, one after another as they are stored, stay together in the line.
        batch: rows of a global batch.
        lanes: at most so many lanes; the greatest divisor common with `batch` is used.
        window: at most so many rows of each lane are shuffled together (rounded to whole batches).
        seed, epoch: what the permutations are drawn from.
    """

    rows: int
    chunk_rows: int
    group: int
    batch: int
    lanes: int
    window: int
    seed: int
    epoch: int

    @property
    def lane_count(self) -> int:
        """The number of lanes."""
        return gcd(self.batch, self.lanes)

    @property
    def lane_batch(self) -> int:
        """Rows that each lane gives to a global batch."""
        return self.batch // self.lane_count

    @property
    def full_batches(self) -> int:
        """The number of full global batches of an epoch."""
        return self.rows // self.batch

    @property
    def window_batches(self) -> int:
        """The number of global batches made from one window of every lane."""
        return max(1, self.window // self.lane_batch)

    @cached_property
    def _chunks(self) -> Indices:
        count = -(-self.rows // self.chunk_rows)
        rng = np.random.default_rng([self.seed, self.epoch, 0])
        group_of = np.arange(count) // self.group
        places = rng.permutation(int(group_of[-1]) + 1)
        return np.lexsort((rng.random(count), places[group_of]))

    @cached_property
    def _starts(self) -> Indices:
        """Where each chunk, in the order in which they lie, begins in the line of rows."""
        sizes = np.minimum(self.chunk_rows, self.rows - self._chunks * self.chunk_rows)
        return np.concatenate([[0], np.cumsum(sizes)])

    def runs(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the stretches of stored rows that make positions `first` to `last` of the line, in order."""
        found = []
        at = int(np.searchsorted(self._starts, first, side="right")) - 1
        while first < last:
            chunk_first = int(self._chunks[at]) * self.chunk_rows
            offset = first - int(self._starts[at])
            length = min(last, int(self._starts[at + 1])) - first
            found.append((chunk_first + offset, chunk_first + offset + length))
            first += length
            at += 1
        return found

    def chunks_after(self, index: int, lane: int, rows: int) -> Indices:
        """Return the chunks of the next `rows` rows of a lane after window `index`, in order."""
        lane_rows = self.full_batches * self.lane_batch
        first = lane * lane_rows + (index + 1) * self.window_batches * self.lane_batch
        last = min(first + rows, (lane + 1) * lane_rows)
        if first >= last:
            return self._chunks[:0]
        ends = np.searchsorted(self._starts, [first, last - 1], side="right")
        return self._chunks[ends[0] - 1 : ends[1]]

    def window_of(self, index: int, lane: int) -> tuple[list[tuple[int, int]], Indices]:
        """Return what window `index` of a lane reads, and the permutation of the rows read."""
        per_window = self.window_batches * self.lane_batch
        lane_rows = self.full_batches * self.lane_batch
        first = index * per_window
        last = min(first + per_window, lane_rows)
        base = lane * lane_rows
        rng = np.random.default_rng([self.seed, self.epoch, 1, lane, index])
        return self.runs(base + first, base + last), rng.permutation(last - first)

    def rows_of(self, step: int) -> Indices:
        """Return the stored rows that make global batch `step` of the epoch, in order: rank by rank, lane by lane."""
        index, within = divmod(step, self.window_batches)
        taken = slice(within * self.lane_batch, (within + 1) * self.lane_batch)
        found = []
        for lane in range(self.lane_count):
            runs, permutation = self.window_of(index, lane)
            found.append(np.concatenate([np.arange(*run) for run in runs])[permutation[taken]])
        return np.concatenate(found)

    def tail(self) -> tuple[list[tuple[int, int]], Indices]:
        """Return what the last, short batch reads, and the permutation of its rows."""
        first = self.full_batches * self.batch
        rng = np.random.default_rng([self.seed, self.epoch, 2])
        return self.runs(first, self.rows), rng.permutation(self.rows - first)
