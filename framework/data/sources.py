"""Where data comes from: the contract, and sources that are not files of records.

A source cuts itself into partitions, each small enough for memory, which Dask reads side by side. To add one,
write a class with the three methods of `Source` and a YAML whose `data.source._target_` names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from framework.errors import DataError, did_you_mean

from .rows import Rows


class Source(Protocol):
    """Raw rows, by partition. Must be picklable; partitions are plain values."""

    def partitions(self) -> Sequence[Any]:
        """Return the partitions, in an order that is always the same."""

    def read(self, partition: Any) -> Rows:
        """Return the rows of one partition: arrays by field name, first axis rows."""

    def fingerprint(self) -> str:
        """Return a string that changes whenever the rows that would be read change."""


@dataclass(frozen=True)
class SklearnSet:
    """One of scikit-learn's bundled sets, as fields `image` (float64 [n, 8, 8], `load_digits` only) or `x`,
    and `label` (int64 [n]).

    Args:
        loader: name of the loader in `sklearn.datasets`, such as `load_digits`.
        partitions_count: how many partitions to cut it into.
    """

    loader: str = "load_digits"
    partitions_count: int = 4

    def _load(self) -> Any:
        from sklearn import datasets

        if not hasattr(datasets, self.loader):
            known = [n for n in dir(datasets) if n.startswith("load_")]
            raise DataError(f"scikit-learn has no set `{self.loader}`.{did_you_mean(self.loader, known)}")
        return getattr(datasets, self.loader)()

    def partitions(self) -> Sequence[int]:
        return range(self.partitions_count)

    def read(self, partition: int) -> Rows:
        bunch = self._load()
        part = np.array_split(np.arange(len(bunch.target)), self.partitions_count)[partition]
        name, values = ("image", bunch.images) if "images" in bunch else ("x", bunch.data)
        return {name: np.asarray(values)[part], "label": np.asarray(bunch.target)[part].astype(np.int64)}

    def fingerprint(self) -> str:
        from importlib.metadata import version

        return f"scikit-learn {version('scikit-learn')} {self.loader} in {self.partitions_count}"


@dataclass(frozen=True)
class Synthetic:
    """Random rows of any number, for trying things out at size.

    Args:
        rows: how many.
        fields: dtype and shape of each field; whole numbers lie in 0..`high`-1, floats are normal.
        high: bound of whole numbers.
        partition_rows: rows of a partition.
        seed: what they are drawn from.
    """

    rows: int
    fields: Mapping[str, Mapping[str, Any]]
    high: int = 10
    partition_rows: int = 10_000
    seed: int = 0

    def partitions(self) -> Sequence[int]:
        return range(-(-self.rows // self.partition_rows))

    def read(self, partition: int) -> Rows:
        rng = np.random.default_rng([self.seed, partition])
        count = min(self.partition_rows, self.rows - partition * self.partition_rows)
        made = {}
        for name, spec in self.fields.items():
            shape, dtype = (count, *spec["shape"]), np.dtype(spec["dtype"])
            whole = dtype.kind in "iu"
            made[name] = (
                rng.integers(0, self.high, shape).astype(dtype) if whole else rng.normal(size=shape).astype(dtype)
            )
        return made

    def fingerprint(self) -> str:
        return f"{self.rows} {sorted(self.fields.items())} {self.high} {self.partition_rows} {self.seed}"


@dataclass(frozen=True)
class ZarrArrays:
    """Arrays of an existing Zarr group (v2 or v3), or one array, all with rows first.

    Args:
        root: folder or URL of the group or array.
        fields: the arrays' names, by the fields they become; for a single array, one field named after "".
        partition_rows: rows of a partition.
    """

    root: str
    fields: Mapping[str, str]
    partition_rows: int = 10_000

    def _arrays(self) -> dict[str, Any]:
        import zarr

        try:
            node: Any = zarr.open(self.root, mode="r")
            arrays: dict[str, Any] = {field: node[name] if name else node for field, name in self.fields.items()}
        except (FileNotFoundError, KeyError, ValueError) as error:
            raise DataError(
                f"`{self.root}` holds no such Zarr arrays ({', '.join(self.fields.values())}): {error}"
            ) from None
        lengths = {name: array.shape[0] for name, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"the arrays in `{self.root}` differ in length: {lengths}")
        return arrays

    def partitions(self) -> Sequence[int]:
        rows = next(iter(self._arrays().values())).shape[0]
        return range(-(-rows // self.partition_rows))

    def read(self, partition: int) -> Rows:
        first = partition * self.partition_rows
        return {n: np.asarray(a[first : first + self.partition_rows]) for n, a in self._arrays().items()}

    def fingerprint(self) -> str:
        from .files import FileSet

        return f"{FileSet(self.root, ('**',)).fingerprint()} {sorted(self.fields.items())} {self.partition_rows}"
