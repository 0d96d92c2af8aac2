"""Reading and writing the shards of a dataset version: Zarr v3, sharded, crc32c on every chunk.

Zarr alone takes a missing shard for fill values and, without crc32c, a flipped bit for data. Here every shard's
presence and size is compared with the manifest before it is read, and every chunk's checksum while it is.
"""

from __future__ import annotations

import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from framework.errors import DataError

from .manifest import Field, Manifest, Shard, Split
from .rows import Rows

MIN_CHUNKS, MIN_CHUNK_ROWS = 64, 16


def layout(rows: int, row_bytes: int, chunk_bytes: int, shard_bytes: int) -> Split:
    """Choose how a split is cut.

    A chunk holds about `chunk_bytes`, but a split has at least 64 chunks where that leaves 16 rows in each, so
    that small data can be shuffled and shared among ranks; a shard holds as many whole chunks as fit in
    `shard_bytes`, and at least one.
    """
    by_bytes = max(1, chunk_bytes // max(1, row_bytes))
    by_count = max(MIN_CHUNK_ROWS, -(-rows // MIN_CHUNKS))
    chunk_rows = max(1, min(by_bytes, by_count))
    chunks_per_shard = max(1, min(shard_bytes // max(1, chunk_rows * row_bytes), -(-rows // chunk_rows)))
    return Split(rows, chunk_rows, chunk_rows * chunks_per_shard)


def _zarr() -> Any:
    import zarr

    if find_spec("zarrs") is not None:
        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    return zarr


def create_arrays(folder: Path, fields: dict[str, Field], split: Split, codec: str, level: int) -> None:
    """Create the empty Zarr group of a split with one sharded array for each field."""
    zarr = _zarr()
    from zarr.codecs import Crc32cCodec, ZstdCodec

    group = zarr.open_group(folder, mode="a", zarr_format=3)
    compressors = [ZstdCodec(level=level)] if codec == "zstd" else []
    for name, spec in fields.items():
        if name in group:
            continue
        group.create_array(
            name,
            shape=(split.rows, *spec.shape),
            dtype=spec.dtype,
            chunks=(split.chunk_rows, *spec.shape),
            shards=(split.shard_rows, *spec.shape),
            compressors=[*compressors, Crc32cCodec()],
            fill_value=0,
        )


def write_shard(folder: Path, name: str, split: Split, index: int, values: npt.NDArray) -> Shard:
    """Write one whole shard of one field and return its entry for the manifest (path relative to `folder`'s parent)."""
    from framework.record.files import checksum

    array = _zarr().open_array(folder / name, mode="r+")
    first = index * split.shard_rows
    array[first : first + len(values)] = values
    file = folder / name / shard_path(index, values.ndim)
    return Shard(name, str(file.relative_to(folder.parent)), first, len(values), file.stat().st_size, checksum(file))


def shard_path(index: int, ndim: int) -> str:
    """Return where Zarr puts shard `index` of an array that is cut along its first axis only."""
    return "/".join(["c", str(index), *["0"] * (ndim - 1)])


class ShardReader:
    """Reads runs of rows of one split. Safe to use from several threads.

    Args:
        folder: the dataset version's folder.
        split: the split's name.

    Raises:
        DataError: when the split does not exist, or a shard is missing or has the wrong size.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.name = folder, split
        self.manifest = Manifest.read(folder)
        self.split = self.manifest.split(split)
        self._arrays: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._shards = {(s.field, s.first_row // self.split.shard_rows): s for s in self.split.shards}
        expected = -(-self.split.rows // self.split.shard_rows) * len(self.manifest.fields)
        if len(self._shards) != expected:
            raise DataError(f"`{folder}`: split `{split}` lists {len(self._shards)} shards of {expected}")
        for shard in self.split.shards:
            self._require(shard)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.split.rows

    def _require(self, shard: Shard) -> None:
        file = self.folder / shard.path
        try:
            found = file.stat().st_size
        except FileNotFoundError:
            raise DataError(f"shard `{file}` is missing; {self._remedy()}") from None
        if found != shard.bytes:
            raise DataError(f"shard `{file}` has {found} bytes instead of {shard.bytes}; {self._remedy()}")

    def _remedy(self) -> str:
        return f"remove `{self.folder}` and run the stage `prepare` again"

    def _array(self, field: str) -> Any:
        with self._lock:
            if field not in self._arrays:
                self._arrays[field] = _zarr().open_array(self.folder / self.name / field, mode="r")
            return self._arrays[field]

    def read(self, field: str, first: int, last: int) -> npt.NDArray:
        """Return rows `first` to `last` (exclusive) of a field.

        Raises:
            DataError: when a shard is missing, short or altered; it is named.
        """
        per_shard = self.split.shard_rows
        shards = [self._shards[(field, i)] for i in range(first // per_shard, -(-last // per_shard))]
        for shard in shards:
            self._require(shard)
        try:
            return np.asarray(self._array(field)[first:last])
        except Exception as error:  # the two pipelines raise types of their own for a bad checksum
            names = ", ".join(f"`{self.folder / s.path}`" for s in shards)
            raise DataError(f"shard {names} is damaged (rows {first}-{last - 1}: {error}); {self._remedy()}") from error

    def read_rows(self, first: int, last: int) -> Rows:
        """Return rows `first` to `last` (exclusive) of all fields."""
        return {name: self.read(name, first, last) for name in self.manifest.fields}
