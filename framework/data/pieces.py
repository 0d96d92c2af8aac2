"""What the partitions of an ingest left on disk, as one line of rows in their final order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .manifest import Field, Split, offsets_of, values_of
from .npy import map_npy
from .ragged import Ragged, chunked_bounds, spans
from .rows import permuted


@dataclass(frozen=True)
class Pieces:
    """The pieces of one split, as one line of rows in their final order.

    Args:
        folder: of all pieces.
        split: the split's name.
        sizes: rows of each piece.
        seed: of the order; None keeps the rows as they came.
    """

    folder: Path
    split: str
    sizes: npt.NDArray[np.int64]
    seed: int | None

    @property
    def rows(self) -> int:
        """Rows in all."""
        return int(self.sizes.sum())

    def stored(self, first: int, last: int) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
        """Yield where rows `first` to `last` of the line are: a piece, rows of it, and a mask of their places."""
        wanted = np.arange(first, last)
        if self.seed is not None:
            wanted = permuted(wanted, self.rows, self.seed)
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        piece_of = np.searchsorted(starts, wanted, side="right") - 1
        for piece in np.unique(piece_of):
            here = piece_of == piece
            yield int(piece), wanted[here] - starts[piece], here

    def load(self, piece: int, array: str) -> npt.NDArray:
        """Return an array of a piece, mapped into memory."""
        return map_npy(self.folder / f"{piece:06d}" / self.split / f"{array}.npy")

    def fixed(self, name: str, spec: Field, first: int, last: int) -> npt.NDArray:
        """Return rows of a field."""
        values = np.empty((last - first, *spec.value_shape), dtype=spec.dtype)
        for piece, rows, here in self.stored(first, last):
            values[here] = self.load(piece, name)[rows]
        return values

    def lengths(self, name: str, first: int, last: int) -> npt.NDArray[np.int64]:
        """Return how many values rows of a ragged field have."""
        lengths = np.empty(last - first, dtype=np.int64)
        for piece, rows, here in self.stored(first, last):
            offsets = self.load(piece, offsets_of(name))[rows]
            lengths[here] = offsets[:, 1] - offsets[:, 0]
        return lengths

    def values(self, name: str, spec: Field, first: int, last: int, plan: Split) -> npt.NDArray:
        """Return the values of rows of a ragged field, those of each chunk of rows in a chunk of their own."""
        size = plan.chunk_values[name]
        into = chunked_bounds(self.lengths(name, first, last), plan.chunk_rows, size)
        values = np.zeros((-(-(last - first) // plan.chunk_rows) * size, *spec.value_shape), dtype=spec.dtype)
        for piece, rows, here in self.stored(first, last):
            part = Ragged(self.load(piece, values_of(name)), self.load(piece, offsets_of(name))).take(rows)
            values[spans(into[here, 0], part.lengths)] = part.values
        return values
