"""Where data comes from.

A source cuts itself into partitions, each small enough for memory, which Dask reads side by side. To add one,
write a class with the three methods of `Source` and a YAML whose `data.source._target_` names it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from framework.config.annotations import ExistingDir
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
class TextFiles:
    """Text files below a folder, as fields `text` (bytes, one file a row) and `path` (relative).

    Args:
        root: the folder.
        patterns: globs below it, such as `**/*.py`.
        exclude: path parts that are left out.
        max_files: at most so many files, evenly spread over the sorted list; None for all.
        partition_bytes: about how many bytes a partition holds.
    """

    root: ExistingDir
    patterns: Sequence[str] = ("**/*.txt",)
    exclude: Sequence[str] = ()
    max_files: int | None = None
    partition_bytes: int = 4_000_000

    def _files(self) -> list[Path]:
        root = Path(self.root).expanduser()
        found = {f for pattern in self.patterns for f in root.glob(pattern) if f.is_file()}
        kept = sorted(f for f in found if not set(f.relative_to(root).parts) & set(self.exclude))
        if not kept:
            raise DataError(f"no file below `{root}` matches {', '.join(self.patterns)}")
        if self.max_files is not None and len(kept) > self.max_files:
            kept = [kept[i] for i in np.linspace(0, len(kept) - 1, self.max_files).astype(int)]
        return kept

    def partitions(self) -> Sequence[tuple[str, ...]]:
        groups: list[list[str]] = [[]]
        size = 0
        for file in self._files():
            if size >= self.partition_bytes:
                groups.append([])
                size = 0
            groups[-1].append(str(file.relative_to(Path(self.root).expanduser())))
            size += file.stat().st_size
        return [tuple(g) for g in groups]

    def read(self, partition: tuple[str, ...]) -> Rows:
        root = Path(self.root).expanduser()
        text = np.empty(len(partition), dtype=object)
        for i, name in enumerate(partition):
            text[i] = (root / name).read_bytes()
        return {"text": text, "path": np.array(partition, dtype=object)}

    def fingerprint(self) -> str:
        root = Path(self.root).expanduser()
        digest = hashlib.blake2b(f"{self.partition_bytes}".encode())
        for file in self._files():
            digest.update(str(file.relative_to(root)).encode() + b"\0")
            digest.update(hashlib.blake2b(file.read_bytes()).digest())
        return digest.hexdigest()


@dataclass(frozen=True)
class NumpyFiles:
    """Arrays of `.npz` files, one file a partition; the arrays' names are the fields.

    Args:
        root: the folder that holds the files.
        pattern: a glob below it.
    """

    root: ExistingDir
    pattern: str = "*.npz"

    def partitions(self) -> Sequence[str]:
        root = Path(self.root).expanduser()
        found = sorted(str(f.relative_to(root)) for f in root.glob(self.pattern))
        if not found:
            raise DataError(f"no file below `{root}` matches {self.pattern}")
        return found

    def read(self, partition: str) -> Rows:
        file = Path(self.root).expanduser() / partition
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (ValueError, OSError, EOFError, KeyError) as error:
            raise DataError(f"`{file}` is not a readable .npz file: {error}") from error
        except Exception as error:  # zipfile and zlib raise types of their own for a damaged archive
            raise DataError(f"`{file}` is damaged: {error}") from error

    def fingerprint(self) -> str:
        root = Path(self.root).expanduser()
        digest = hashlib.blake2b()
        for name in self.partitions():
            digest.update(name.encode() + b"\0" + hashlib.blake2b((root / name).read_bytes()).digest())
        return digest.hexdigest()
