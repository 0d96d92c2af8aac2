"""Windows of rows: where they lie, the threads that fill them ahead of use, and the lanes they are read from."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from sys import getrefcount
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .manifest import offsets_of, values_of
from .order import Indices, Order
from .rows import Rows
from .store import ShardReader

if TYPE_CHECKING:
    from .loader import ShardLoader


class Window:
    """The rows of one window of all lanes of a rank, in the order in which batches take them.

    Args:
        reader: of the split.
        rows: of each lane.
        lanes: how many.
    """

    def __init__(self, reader: ShardReader, rows: int, lanes: int) -> None:
        arrays = {n: reader.empty(n, rows * lanes) for n, spec in reader.manifest.fields.items() if not spec.ragged}
        chunks = rows // reader.split.chunk_rows + 3  # begun at both ends, and the split's last, which may be short
        for name, size in reader.split.chunk_values.items():
            arrays[offsets_of(name)] = reader.empty(offsets_of(name), rows * lanes)
            arrays[values_of(name)] = reader.empty(values_of(name), chunks * size * lanes)
        self.arrays, self.busy = arrays, False

    def is_free(self) -> bool:
        """Return whether nobody fills it, and no batch that looks at it is alive: its arrays have no other owner."""
        return not self.busy and all(getrefcount(self.arrays[name]) <= 2 for name in self.arrays)


class ReadAhead:
    """Has one window filled while another is used.

    Args:
        loader: whose windows are filled, and kept for later epochs.
        order: of the epoch.
        readers: the threads; None where all data is in memory, and waking them costs more than they save.
    """

    def __init__(self, loader: ShardLoader, order: Order, readers: ThreadPoolExecutor | None) -> None:
        self.loader, self.order, self.readers = loader, order, readers
        self.own = order.lane_count // loader.world_size
        first = loader.rank * self.own
        self.lanes = [Lane(loader.reader, first + i, loader.resident) for i in range(self.own)]
        self._started: tuple[int, Window, list[Future[None]]] | None = None
        self._used: Window | None = None

    def start(self, number: int) -> None:
        """Begin to fill window `number`, if there is one and that has not been done."""
        first = number * self.order.window_batches
        if first >= self.order.full_batches or (self._started is not None and self._started[0] == number):
            return
        window = self._free_window()
        window.busy = True
        tasks: list[Future[None]] = []
        for i in range(self.own):
            if self.readers is None:
                self._fill(i, number, window)
            else:
                tasks.append(self.readers.submit(self._fill, i, number, window))
        self._started = number, window, tasks

    def take(self, number: int) -> Window:
        """Return window `number` once it is filled, until the next one is taken."""
        self.start(number)
        assert self._started is not None
        _, window, tasks = self._started
        for task in tasks:
            task.result()
        if self._used is not None:
            self._used.busy = False
        self._used = window
        return window

    def close(self) -> None:
        """Wait for what is being filled, and let all windows be used again."""
        if self._started is not None:
            wait(self._started[2])
            self._started[1].busy = False
        if self._used is not None:
            self._used.busy = False

    def _free_window(self) -> Window:
        known = self.loader.windows
        for window in known:
            if window.is_free():
                return window
        rows = self.order.window_batches * self.order.lane_batch
        known.append(Window(self.loader.reader, rows, self.own))
        return known[-1]

    def _fill(self, i: int, number: int, window: Window) -> None:
        """Fill one lane's share: `lane_batch` rows of every step."""
        reader, lane = self.loader.reader, self.lanes[i].number
        runs, permutation = self.order.window_of(number, lane)
        reader.read_ahead(self.order.chunks_after(number, lane, reader.split.shard_rows))
        places = np.arange(len(permutation)).reshape(-1, self.order.lane_batch)
        places += (np.arange(len(places))[:, None] * (self.own - 1) + i) * self.order.lane_batch
        target = np.empty_like(permutation)
        target[permutation] = places.reshape(-1)
        self.lanes[i].read(runs, target, window.arrays, i / self.own)


class Lane:
    """Reads the windows of one lane, one after another; a chunk that reaches into the next window is kept for it.

    Args:
        reader: of the split.
        number: which lane.
        resident: arrays that are in memory.
    """

    def __init__(self, reader: ShardReader, number: int, resident: Rows) -> None:
        self.reader, self.number, self.resident = reader, number, resident
        self._buffers = {n: reader.empty(n, a.chunk_rows) for n, a in reader.arrays.items() if n not in resident}
        self._chunks = dict.fromkeys(self._buffers, -1)

    def read(self, runs: Sequence[tuple[int, int]], target: Indices, arrays: Rows, share: float) -> None:
        """Read runs of stored rows, each within a chunk, one after another.

        Args:
            runs: first and last row (exclusive) of each.
            target: where each row goes.
            arrays: of the window, by name.
            share: of the memory for ragged values that is before this lane's.
        """
        values_at = {n: round(len(arrays[values_of(n)]) * share) for n in self.reader.split.chunk_values}
        at = 0
        for first, last in runs:
            here = target[at : at + last - first]
            for name, spec in self.reader.manifest.fields.items():
                if not spec.ragged:
                    _flat(arrays[name])[here] = _flat(self._rows(name, first, last))
                    continue
                offsets = self._rows(offsets_of(name), first, last)
                begin, end, to = int(offsets[0, 0]), int(offsets[-1, 1]), values_at[name]
                arrays[offsets_of(name)][here] = offsets + (to - begin)
                arrays[values_of(name)][to : to + end - begin] = self._rows(values_of(name), begin, end)
                values_at[name] = to + end - begin
            at += last - first

    def _rows(self, name: str, first: int, last: int) -> npt.NDArray:
        """Return elements of an array that lie within a chunk, which is read unless it was the last one read."""
        if name in self.resident or first == last:
            return self.resident[name][first:last] if name in self.resident else self._buffers[name][:0]
        chunk, offset = divmod(first, self.reader.arrays[name].chunk_rows)
        if self._chunks[name] != chunk:
            self._chunks[name] = -1
            self.reader.read_chunk(name, chunk, self._buffers[name])
            self._chunks[name] = chunk
        return self._buffers[name][offset : offset + last - first]


def _flat(rows: npt.NDArray) -> npt.NDArray:
    """Return rows without their inner shape: NumPy copies them whole, and not line by line."""
    return rows if rows.ndim == 1 else rows.reshape(len(rows), -1)
