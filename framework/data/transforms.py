"""What is done to rows before they are stored, one partition of one split at a time.

To add one, write a class that is called with rows and returns rows, and a YAML entry in `data.transforms`. One that
learns from the data first is `Fitted`.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from framework.errors import DataError, did_you_mean

from .rows import Rows, take

ROW_ID = "_row"
"""A field that ingest adds to raw rows: a whole number that is each row's own; it goes when rows are made anew."""


class Transform(Protocol):
    """From rows to rows; may add, drop or change fields and the number of rows. Must be picklable and pure."""

    def __call__(self, rows: Rows) -> Rows:
        """Return the transformed rows."""


@runtime_checkable
class Fitted(Protocol):
    """A transform that must see the data first: every partition is measured, and the measures make the transform.

    Attributes:
        over: the splits whose rows are measured: `train` (what is learned must not come from held-out rows) or `all`.
    """

    over: ClassVar[Literal["train", "all"]]

    def measure(self, rows: Rows) -> Any:
        """Return what is to be known of one partition's rows, as the transforms before this one left them."""

    def fit(self, measures: Sequence[Any]) -> Transform:
        """Return the transform, from the measures of all partitions in order."""


@runtime_checkable
class Fingerprinted(Protocol):
    """A transform that depends on more than its arguments, such as a file's content."""

    def fingerprint(self) -> str:
        """Return a string that changes whenever its effect does."""


@runtime_checkable
class Published(Protocol):
    """A transform that leaves files beside the dataset's, without which the rows cannot be understood."""

    def files(self) -> Mapping[str, str]:
        """Return texts by file name."""


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
class Drop:
    """Remove fields.

    Args:
        fields: their names.
    """

    fields: Sequence[str]

    def __call__(self, rows: Rows) -> Rows:
        for name in self.fields:
            field(rows, name)
        return {n: v for n, v in rows.items() if n not in self.fields}


_TESTS: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "in": lambda values, wanted: np.isin(values.astype(str), [str(w) for w in wanted]),
    "longer": lambda values, wanted: np.array([len(v) for v in values]) > wanted,
}  # fmt: skip


@dataclass(frozen=True)
class Filter:
    """Keep the rows whose field passes a test.

    Args:
        field: the field.
        test: how it is compared; `in` with a list of values, `longer` the length with a number.
        value: with what.
    """

    field: str
    test: Literal["==", "!=", "<", "<=", ">", ">=", "in", "longer"]
    value: Any

    def __call__(self, rows: Rows) -> Rows:
        try:
            kept = np.asarray(_TESTS[self.test](field(rows, self.field), self.value), dtype=bool)
        except TypeError as error:
            raise DataError(f"field `{self.field}` cannot be compared with {self.value!r}: {error}") from None
        return take(rows, kept)


@dataclass(frozen=True)
class Resize:
    """Bring images of any sizes to one, by Pillow's antialiased resampling.

    Args:
        field: the field; each row uint8 [channels, height, width].
        size: [height, width].
        resample: the filter.
    """

    field: str
    size: list[int]
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"

    def __call__(self, rows: Rows) -> Rows:
        from PIL import Image

        method = Image.Resampling[self.resample.upper()]
        height, width = self.size
        images = field(rows, self.field)
        channels = images[0].shape[0] if len(images) else 1
        out = np.empty((len(images), channels, height, width), dtype=np.uint8)
        for i, image in enumerate(images):
            if image.shape[1:] == (height, width):
                out[i] = image
            else:
                planes = [Image.fromarray(np.ascontiguousarray(p)).resize((width, height), method) for p in image]
                out[i] = np.stack([np.asarray(p) for p in planes])
        return {**rows, self.field: out}


@dataclass(frozen=True)
class Standardise:
    """Bring a field to mean 0 and standard deviation 1, as float32; both are measured on the train split.

    Args:
        field: the field, [n, ...].
        axis: the axis that keeps its own mean and deviation (1 for channels); None for one of each.
    """

    field: str
    axis: int | None = None
    over: ClassVar[Literal["train", "all"]] = "train"

    def measure(self, rows: Rows) -> tuple[int, Any, Any]:
        x = np.asarray(field(rows, self.field), dtype=np.float64)
        axes = tuple(i for i in range(x.ndim) if i != self.axis) if self.axis is not None else None
        count = x.size if self.axis is None else x.size // max(1, x.shape[self.axis])
        return count, x.sum(axis=axes), np.square(x).sum(axis=axes)

    def fit(self, measures: Sequence[tuple[int, Any, Any]]) -> Transform:
        measures = [m for m in measures if m[0]]
        count = sum(m[0] for m in measures)
        if not count:
            raise DataError(f"field `{self.field}` has no values in the train split to be standardised by")
        mean = sum(m[1] for m in measures) / count
        variance = np.maximum(sum(m[2] for m in measures) / count - np.square(mean), 0)
        if not np.all(np.isfinite(mean)):
            raise DataError(f"field `{self.field}` has values that are not finite")
        deviation = np.where(variance > 0, np.sqrt(variance), 1.0)
        return Affine(self.field, np.atleast_1d(mean).tolist(), np.atleast_1d(deviation).tolist(), self.axis)


@dataclass(frozen=True)
class Affine:
    """Turn a field into float32 as (x - mean) / std.

    Args:
        field: the field.
        mean, std: one number, or one for each index of `axis`.
        axis: of the field, rows first.
    """

    field: str
    mean: Sequence[float]
    std: Sequence[float]
    axis: int | None = None

    def __call__(self, rows: Rows) -> Rows:
        x = np.asarray(field(rows, self.field), dtype=np.float32)
        shape = [1] * x.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        mean, std = (np.asarray(v, dtype=np.float32).reshape(shape) for v in (self.mean, self.std))
        return {**rows, self.field: (x - mean) / std}


@dataclass(frozen=True)
class Deduplicate:
    """Keep the first of all rows, in all splits, that are equal in a field; so none leaks from train into test.

    Args:
        field: the field; rows are compared by a 128-bit hash of their content.
    """

    field: str
    over: ClassVar[Literal["train", "all"]] = "all"

    def measure(self, rows: Rows) -> tuple[list[bytes], npt.NDArray[np.uint64]]:
        hashes = [hashlib.blake2b(_content(v), digest_size=16).digest() for v in field(rows, self.field)]
        return hashes, field(rows, ROW_ID)

    def fit(self, measures: Sequence[tuple[list[bytes], npt.NDArray[np.uint64]]]) -> Transform:
        seen: set[bytes] = set()
        again = []
        for row, content in sorted((int(r), h) for hashes, ids in measures for h, r in zip(hashes, ids, strict=True)):
            if content in seen:
                again.append(row)
            seen.add(content)
        return WithoutRows(np.array(again, dtype=np.uint64))


def _content(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    array = np.asarray(value)
    return f"{array.dtype}{array.shape}".encode() + array.tobytes()


@dataclass(frozen=True)
class WithoutRows:
    """Leave out rows by their number.

    Args:
        rows: the numbers, sorted.
    """

    rows: npt.NDArray[np.uint64]

    def __call__(self, rows: Rows) -> Rows:
        return take(rows, ~np.isin(field(rows, ROW_ID), self.rows))
