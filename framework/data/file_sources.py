"""Sources that are files: text, images, tables, NumPy archives. Local, or behind a URL."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from csv import reader
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from framework.config.annotations import ExistingDir
from framework.errors import DataError

from .files import FileSet
from .npy import parse_npz
from .rows import Rows

Block = tuple[str, int, int]  # a file, and where a block of it begins and how long it is


def _grouped(sizes: dict[str, int], partition_bytes: int) -> list[tuple[str, ...]]:
    """Return files in groups of about so many bytes, in order."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, length in sizes.items():
        if groups[-1] and size + length > partition_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += length
    return [tuple(group) for group in groups]


def _column(values: Sequence[Any]) -> npt.NDArray:
    """Return numbers (and lists of equally many numbers) as an array of numbers, anything else as objects."""
    plain = bool(values) and isinstance(values[0], (int, float, list))
    try:
        return np.array(values) if plain else _objects(values)
    except ValueError:  # lists of different lengths
        return _objects(values)


def _objects(values: Sequence[Any]) -> npt.NDArray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


@dataclass(frozen=True)
class TextFiles:
    """Text files below a folder, as fields `text` (bytes, one file a row) and `path` (relative).

    Args:
        root: the folder, or a URL.
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

    @property
    def _files(self) -> FileSet:
        return FileSet(str(self.root), tuple(self.patterns), tuple(self.exclude))

    def _sizes(self) -> dict[str, int]:
        sizes = self._files.sizes()
        if self.max_files is not None and len(sizes) > self.max_files:
            names = list(sizes)
            return {names[i]: sizes[names[i]] for i in np.linspace(0, len(names) - 1, self.max_files).astype(int)}
        return sizes

    def partitions(self) -> Sequence[tuple[str, ...]]:
        return _grouped(self._sizes(), self.partition_bytes)

    def read(self, partition: tuple[str, ...]) -> Rows:
        files = self._files
        return {"text": _objects([files.read(n) for n in partition]), "path": _objects(list(partition))}

    def fingerprint(self) -> str:
        return f"{self._files.fingerprint(list(self._sizes()))} {self.partition_bytes}"


@dataclass(frozen=True)
class ImageFolder:
    """Images in one sub-folder a class, as fields `image` (uint8 arrays [channels, height, width], of any sizes),
    `label` (int64: the class's place in the sorted list) and `path`.

    Args:
        root: the folder, or a URL.
        patterns: globs below it.
        mode: `RGB` for three channels, `L` for one.
        partition_bytes: about how many bytes of files a partition holds.
    """

    root: ExistingDir
    patterns: Sequence[str] = ("*/*.png", "*/*.jpg", "*/*.jpeg")
    mode: Literal["RGB", "L"] = "RGB"
    partition_bytes: int = 16_000_000

    @property
    def _files(self) -> FileSet:
        return FileSet(str(self.root), tuple(self.patterns))

    def classes(self) -> list[str]:
        """Return the class names, sorted: the folders that hold images."""
        return sorted({name.split("/")[0] for name in self._files.names()})

    def partitions(self) -> Sequence[tuple[tuple[str, ...], tuple[str, ...]]]:
        classes = tuple(self.classes())
        return [(group, classes) for group in _grouped(self._files.sizes(), self.partition_bytes)]

    def read(self, partition: tuple[tuple[str, ...], tuple[str, ...]]) -> Rows:
        names, classes = partition
        images = [self._decode(name) for name in names]
        label = np.array([classes.index(name.split("/")[0]) for name in names], dtype=np.int64)
        return {"image": _objects(images), "label": label, "path": _objects(list(names))}

    def _decode(self, name: str) -> npt.NDArray[np.uint8]:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(self._files.read(name))) as image:
                pixels = np.asarray(image.convert(self.mode))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise DataError(f"`{self._files.path(name)}` is not a readable image: {error}") from error
        return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def fingerprint(self) -> str:
        return f"{self._files.fingerprint()} {self.mode} {self.partition_bytes}"


@dataclass(frozen=True)
class NumpyFiles:
    """Arrays of `.npz` files, one file a partition; the arrays' names are the fields.

    Args:
        root: the folder that holds the files, or a URL.
        pattern: a glob below it.
    """

    root: ExistingDir
    pattern: str = "*.npz"

    @property
    def _files(self) -> FileSet:
        return FileSet(str(self.root), (self.pattern,))

    def partitions(self) -> Sequence[str]:
        return self._files.names()

    def read(self, partition: str) -> Rows:
        path = self._files.path(partition)
        try:
            return parse_npz(self._files.read(partition))
        except DataError:
            raise
        except Exception as error:  # zipfile, zlib and NumPy raise types of their own for a damaged archive
            raise DataError(f"`{path}` is not a readable .npz file: {error}") from error

    def fingerprint(self) -> str:
        return self._files.fingerprint()


@dataclass(frozen=True)
class _Table:
    """What CSV, JSON lines and Parquet share: columns become fields, text as Python strings."""

    root: ExistingDir
    pattern: str
    columns: Sequence[str] | None = None

    @property
    def _files(self) -> FileSet:
        return FileSet(str(self.root), (self.pattern,))

    def _rows(self, table: Any, where: str) -> Rows:
        wanted = list(self.columns) if self.columns is not None else table.column_names
        missing = [name for name in wanted if name not in table.column_names]
        if missing:
            raise DataError(f"`{where}` has no column `{missing[0]}`, only {', '.join(table.column_names)}")
        rows = {}
        for name in wanted:
            column = table.column(name)
            if column.null_count:
                raise DataError(f"`{where}`: column `{name}` has {column.null_count} empty values; fill or drop them")
            rows[name] = column.to_numpy()
        return rows

    def fingerprint(self) -> str:
        return f"{self._files.fingerprint()} {self.columns}"


@dataclass(frozen=True)
class _LineTable(_Table):
    """A table with one record a line, cut into blocks at line ends."""

    block_bytes: int = 16_000_000

    def partitions(self) -> Sequence[Block]:
        sizes = self._files.sizes()
        return [(n, at, self.block_bytes) for n, size in sizes.items() for at in range(0, size, self.block_bytes)]

    def _block(self, partition: Block) -> bytes:
        from fsspec.utils import read_block

        name, offset, length = partition
        with self._files.open(name) as file:
            return read_block(file, offset, length, delimiter=b"\n")

    def fingerprint(self) -> str:
        return f"{super().fingerprint()} {self.block_bytes}"


@dataclass(frozen=True)
class Csv(_LineTable):
    """CSV files with a header line; types are inferred for each file from its first block. No line breaks in values.

    Args:
        root: the folder that holds the files, or a URL.
        pattern: a glob below it.
        columns: the columns to take, by default all.
        block_bytes: about how many bytes a partition holds.
        delimiter: between values.
    """

    pattern: str = "*.csv"
    delimiter: str = ","

    def read(self, partition: Block) -> Rows:
        import pyarrow as pa
        from pyarrow import csv

        name, offset, _ = partition
        path = self._files.path(name)
        head = self._files.read(name, 0, 1_000_000)
        header = head.partition(b"\n")[0].decode("utf-8-sig").rstrip("\r")
        block = self._block(partition)
        body = block.partition(b"\n")[2] if offset == 0 else block
        parse = csv.ParseOptions(delimiter=self.delimiter)
        try:
            sample = csv.read_csv(pa.BufferReader(head[: head.rfind(b"\n") + 1] or head), parse_options=parse)
            if not body.strip():
                return self._rows(sample.slice(0, 0), path)
            options = csv.ReadOptions(column_names=next(reader([header], delimiter=self.delimiter)))
            types = csv.ConvertOptions(column_types=dict(zip(sample.schema.names, sample.schema.types, strict=True)))
            table = csv.read_csv(pa.BufferReader(body), options, parse, types)
        except pa.ArrowInvalid as error:
            raise DataError(f"`{path}` (bytes from {offset} on) is not a readable CSV: {error}") from error
        return self._rows(table, path)


@dataclass(frozen=True)
class JsonLines(_LineTable):
    """Files with one JSON object a line.

    Args:
        root: the folder that holds the files, or a URL.
        pattern: a glob below it.
        columns: the keys to take, by default those of the first line.
        block_bytes: about how many bytes a partition holds.
    """

    pattern: str = "*.jsonl"

    def read(self, partition: Block) -> Rows:
        name, offset, _ = partition
        records = []
        for number, line in enumerate(self._block(partition).splitlines()):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                where = f"`{self._files.path(name)}`, line {number + 1} from byte {offset} on"
                raise DataError(f"{where}: not a JSON object: {error}") from None
            records.append(record)
        wanted = list(self.columns) if self.columns is not None else list(records[0] if records else [])
        try:
            columns = {key: [record[key] for record in records] for key in wanted}
        except (KeyError, TypeError) as error:
            raise DataError(f"`{self._files.path(name)}`: a line has no key {error}") from None
        return {key: _column(values) for key, values in columns.items()}


@dataclass(frozen=True)
class Parquet(_Table):
    """Parquet files, one row group a partition.

    Args:
        root: the folder that holds the files, or a URL.
        pattern: a glob below it.
        columns: the columns to take, by default all.
    """

    pattern: str = "*.parquet"

    def _open(self, name: str) -> Any:
        import pyarrow as pa
        from pyarrow import parquet

        try:
            return parquet.ParquetFile(self._files.open(name))
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"`{self._files.path(name)}` is not a readable Parquet file: {error}") from error

    def partitions(self) -> Sequence[tuple[str, int]]:
        return [(name, group) for name in self._files.names() for group in range(self._open(name).num_row_groups)]

    def read(self, partition: tuple[str, int]) -> Rows:
        name, group = partition
        return self._rows(self._open(name).read_row_group(group), self._files.path(name))
