"""Ragged fields: rows of different length, stored as two arrays, `<field>.values` and `<field>.offsets`.

`values[offsets[row, 0]:offsets[row, 1]]` is a row, for Zarr as for us. The values of a chunk of rows fill a chunk of
their own, padded to the fullest one's size, so that a chunk of rows is read without its neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from framework.errors import DataError

from .manifest import Field

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ragged:
    """Rows of different length in memory.

    Args:
        values: of all rows, end to end, [values, ...].
        offsets: where each row begins and ends in them, int64 [rows, 2].
    """

    values: npt.NDArray
    offsets: Counts

    @property
    def lengths(self) -> Counts:
        """Values of each row."""
        return self.offsets[:, 1] - self.offsets[:, 0]

    def take(self, index: npt.NDArray) -> Ragged:
        """Return some of the rows, their values end to end."""
        chosen = self.offsets[index]
        lengths = chosen[:, 1] - chosen[:, 0]
        values = np.take(self.values, spans(chosen[:, 0], lengths), axis=0)
        return Ragged(values, bounds(lengths))

    @classmethod
    def of(cls, name: str, rows: Sequence[Any] | npt.NDArray, field: Field) -> Ragged:
        """Return rows (arrays or lists, one each) end to end.

        Raises:
            DataError: when a row's values are not of the field's dtype and shape.
        """
        empty = np.empty((0, *field.value_shape), dtype=field.dtype)
        arrays = [np.asarray(row) for row in rows]
        arrays = [array if array.size or array.ndim == 0 else empty for array in arrays]
        kinds = "biu" if empty.dtype.kind in "iu" else "biuf"
        for array in arrays:
            if array.ndim == 0 or array.shape[1:] != field.value_shape or array.dtype.kind not in kinds:
                raise DataError(
                    f"data.fields.{name}: a row is {array.dtype} {list(array.shape)} after the transforms, "
                    f"and the config says {field.dtype} {json.dumps(field.shape)}"
                )
        values = np.concatenate([empty[:0].astype(arrays[0].dtype) if arrays else empty, *arrays])
        stored = values.astype(field.dtype)
        if kinds == "biu" and not np.array_equal(values, stored):
            raise DataError(
                f"data.fields.{name}: values from {values.min()} to {values.max()} are more than {field.dtype} holds"
            )
        return cls(stored, bounds(np.array([len(a) for a in arrays], dtype=np.int64)))


def bounds(lengths: Counts) -> Counts:
    """Return where rows of some lengths begin and end when they lie end to end, [rows, 2]."""
    ends = np.cumsum(lengths)
    return np.stack([ends - lengths, ends], axis=1)


def spans(starts: Counts, lengths: Counts) -> Counts:
    """Return the whole numbers from each start on, as many as its length says, end to end."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


def chunk_totals(lengths: Counts, chunk_rows: int) -> Counts:
    """Return how many values each chunk of rows has."""
    return np.add.reduceat(lengths, np.arange(0, len(lengths), chunk_rows)) if len(lengths) else lengths


def chunked_bounds(lengths: Counts, chunk_rows: int, chunk_values: int) -> Counts:
    """Return where rows begin and end when every chunk of rows has a chunk of values of its own, [rows, 2]."""
    totals = chunk_totals(lengths, chunk_rows)
    chunk = np.arange(len(lengths)) // chunk_rows
    before = np.concatenate([[0], np.cumsum(totals)[:-1]]) if len(totals) else totals
    return bounds(lengths) + (chunk * chunk_values - before[chunk])[:, None]
