"""What is done to rows before they are stored, one partition of one split at a time.

To add one, write a class that is called with rows and returns rows, and a YAML entry in `data.transforms`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from framework.errors import DataError, did_you_mean

from .rows import Rows


class Transform(Protocol):
    """From rows to rows; may add, drop or change fields and the number of rows. Must be picklable and pure."""

    def __call__(self, rows: Rows) -> Rows:
        """Return the transformed rows."""


def field(rows: Rows, name: str) -> np.ndarray:
    """Return a field of the rows, or raise a `DataError` that names those there are."""
    if name not in rows:
        raise DataError(f"there is no field `{name}`; the rows have {', '.join(rows)}.{did_you_mean(name, list(rows))}")
    return rows[name]


@dataclass(frozen=True)
class Cast:
    """Multiply a field and store it in another dtype; values that the dtype cannot hold are an error.

    Args:
        field: the field's name.
        dtype: NumPy's name of the new dtype.
        scale: factor applied first.
    """

    field: str
    dtype: str
    scale: float = 1.0

    def __call__(self, rows: Rows) -> Rows:
        values = field(rows, self.field)
        values = values if self.scale == 1.0 else values * self.scale
        target = np.dtype(self.dtype)
        if target.kind in "iu" and len(values):
            low, high = np.min(values), np.max(values)
            info = np.iinfo(target)
            if not (info.min <= low and high <= info.max):
                raise DataError(f"field `{self.field}` has values from {low} to {high}, outside {target}")
        return {**rows, self.field: values.astype(target)}


@dataclass(frozen=True)
class Reshape:
    """Give each row of a field another shape, such as `[1, 8, 8]`.

    Args:
        field: the field's name.
        shape: the new shape of one row.
    """

    field: str
    shape: list[int]

    def __call__(self, rows: Rows) -> Rows:
        values = field(rows, self.field)
        try:
            return {**rows, self.field: values.reshape(len(values), *self.shape)}
        except ValueError:
            raise DataError(f"rows of field `{self.field}` have shape {values.shape[1:]}, not {self.shape}") from None


@dataclass(frozen=True)
class ByteWindows:
    """Read documents as bytes, join them end to end, and cut them into windows of tokens.

    A zero byte closes each document. Windows overlap by one token, so that every token but a partition's first
    is predicted once. A last window that is not full is dropped.

    Args:
        field: the field of documents (bytes or str), which is replaced.
        into: the new field, uint8 [windows, length].
        length: tokens in a window: the model's context + 1.
    """

    field: str
    into: str
    length: int

    def __call__(self, rows: Rows) -> Rows:
        documents = [d.encode() if isinstance(d, str) else d for d in field(rows, self.field)]
        stream = np.frombuffer(b"".join(d + b"\0" for d in documents), dtype=np.uint8)
        stride = self.length - 1
        windows = max(0, (len(stream) - 1) // stride)
        index = np.arange(windows)[:, None] * stride + np.arange(self.length)
        return {self.into: stream[index]}
