"""A split on disk: how it is cut into chunks and shards, writing shards, and reading runs of rows.

Zarr alone takes a missing shard for fill values and, without crc32c, a flipped bit for data. Here every shard's
presence and size is compared with the manifest when it is opened, and every chunk's checksum when it is read.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from framework.errors import DataError

from .manifest import Array, Codec, Manifest, Shard, Split, offsets_of, values_of
from .ragged import Ragged, bounds
from .remote import Fetching, RemoteVersion, ShardCache, is_url
from .rows import Rows
from .shard import ShardFile, encode_shard

MIN_CHUNKS, MIN_CHUNK_ROWS = 64, 16
OPEN_SHARDS, OPEN_FETCHED_SHARDS = 256, 64  # what the cache has let go stays on the disk while it is open


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


def create_arrays(folder: Path, arrays: dict[str, Array], codec: Codec, level: int) -> None:
    """Create the Zarr group of a split with its sharded arrays; the shards come later."""
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    group = zarr.open_group(folder, mode="a", zarr_format=3)
    compressors = [ZstdCodec(level=level)] if codec == "zstd" else []
    for name, array in arrays.items():
        if name in group:
            continue
        group.create_array(
            name,
            shape=(array.rows, *array.shape),
            dtype=array.dtype,
            chunks=(array.chunk_rows, *array.shape),
            shards=(array.shard_rows, *array.shape),
            compressors=[*compressors, Crc32cCodec()],
            fill_value=0,
        )


def write_shard(
    folder: Path, name: str, array: Array, index: int, values: npt.NDArray, codec: Codec, level: int
) -> Shard:
    """Write one whole shard of one array, aside and renamed.

    Args:
        folder: the split's folder.
        name: the array's.
        array: how it is cut.
        index: which shard.
        values: its rows.
        codec, level: how chunks are compressed.

    Returns:
        its entry for the manifest (with its path relative to `folder`'s parent).
    """
    file = folder / name / shard_path(index, values.ndim)
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.part")
    digest, size = hashlib.sha256(), 0
    parts = encode_shard(values, array.chunk_rows, array.shard_rows // array.chunk_rows, codec, level)
    with aside.open("wb") as stream:
        while True:
            try:
                part = next(parts)
            except StopIteration as end:
                identity: int = end.value
                break
            stream.write(part)
            digest.update(part)
            size += len(part)
    aside.replace(file)
    path = str(file.relative_to(folder.parent))
    return Shard(name, path, index * array.shard_rows, len(values), size, digest.hexdigest(), identity)


def shard_path(index: int, ndim: int) -> str:
    """Return where Zarr puts shard `index` of an array that is cut along its first axis only."""
    return "/".join(["c", str(index), *["0"] * (ndim - 1)])


class ShardReader:
    """Reads runs of rows of one split. Safe to use from several threads.

    Args:
        location: the dataset version's folder, or its URL.
        split: the split's name.
        only: the one shard that will be read, where others may be damaged.
        cache: where shards behind a URL are kept.

    Raises:
        DataError: when the split does not exist, or a shard is missing or has the wrong size.
    """

    def __init__(
        self, location: Path | str, split: str, only: Shard | None = None, cache: ShardCache | None = None
    ) -> None:
        self._remote = Fetching(RemoteVersion(str(location), cache or ShardCache())) if is_url(location) else None
        self.folder = self._remote.version.folder if self._remote else Path(location)
        self.manifest = Manifest.read(self.folder)
        self.split = self.manifest.split(split)
        self.arrays = self.split.arrays(self.manifest.fields)
        self._shards = {(s.field, s.first_row // self.arrays[s.field].shard_rows): s for s in self.split.shards}
        expected = sum(-(-a.rows // a.shard_rows) for a in self.arrays.values())
        if len(self._shards) != expected:
            raise DataError(f"`{location}`: split `{split}` lists {len(self._shards)} shards of {expected}")
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[str, int], ShardFile] = OrderedDict()
        if self._remote is None:
            for shard in self.split.shards if only is None else [only]:
                self._require(shard)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.split.rows

    @property
    def row_bytes(self) -> int:
        """Bytes that a row takes in memory at most, all fields together."""
        chunk = sum(a.chunk_rows * a.row_bytes for a in self.arrays.values())
        return max(1, -(-chunk // self.split.chunk_rows))

    def read(self, field: str, first: int, last: int) -> npt.NDArray:
        """Return rows `first` to `last` (exclusive) of an array.

        Raises:
            DataError: when a shard is missing, short or altered; it is named.
        """
        out = self.empty(field, last - first)
        self.read_into(field, first, last, out)
        return out

    def empty(self, field: str, rows: int) -> npt.NDArray:
        """Return memory for rows of an array."""
        return np.empty((rows, *self.arrays[field].shape), dtype=self.arrays[field].dtype)

    def read_into(self, field: str, first: int, last: int, out: npt.NDArray) -> None:
        """Like `read`, into an array that is there; whole chunks go straight to it."""
        size = self.arrays[field].chunk_rows
        while first < last:
            chunk, offset = divmod(first, size)
            taken = min(size - offset, last - first)
            if taken == size:
                self.read_chunk(field, chunk, out[:size])
            else:
                out[:taken] = self.read_chunk(field, chunk)[offset : offset + taken]
            first, out = first + taken, out[taken:]

    def read_rows(self, first: int, last: int) -> Rows:
        """Return rows `first` to `last` (exclusive) of all fields; of a ragged one, values and offsets."""
        rows: Rows = {}
        for name, spec in self.manifest.fields.items():
            if spec.ragged:
                part = self._read_ragged(name, first, last)
                rows |= {values_of(name): part.values, offsets_of(name): part.offsets}
            else:
                rows[name] = self.read(name, first, last)
        return rows

    def _read_ragged(self, name: str, first: int, last: int) -> Ragged:
        offsets, values, size = self.read(offsets_of(name), first, last), values_of(name), self.split.chunk_rows
        parts = [self.read(values, 0, 0)]
        for at in sorted({first, *range(-(-first // size) * size, last, size)}):
            stretch = offsets[at - first : min((at // size + 1) * size, last) - first]
            parts.append(self.read(values, stretch[0, 0], stretch[-1, 1]))
        return Ragged(np.concatenate(parts), bounds(offsets[:, 1] - offsets[:, 0]))

    def read_chunk(self, field: str, chunk: int, out: npt.NDArray | None = None) -> npt.NDArray:
        """Return a whole chunk of an array (its last one is padded), in `out` where it is given."""
        array = self.arrays[field]
        if out is None:
            out = self.empty(field, array.chunk_rows)
        per_shard = array.shard_rows // array.chunk_rows
        index, within = divmod(chunk, per_shard)
        shard = self._shards[(field, index)]
        try:
            self._file(field, index, shard, per_shard).read_chunk(within, out)
        except FileNotFoundError:
            raise DataError(f"shard `{self.folder / shard.path}` is missing; {self._remedy()}") from None
        except (DataError, OSError, RuntimeError, IndexError) as error:
            first = chunk * array.chunk_rows
            rows = f"rows {first}-{min(first + array.chunk_rows, array.rows) - 1} of `{field}`"
            path = self.folder / shard.path
            raise DataError(f"shard `{path}` is damaged ({rows}): {error}; {self._remedy()}") from error
        return out

    def read_ahead(self, chunks: npt.NDArray[np.int64]) -> None:
        """Begin to fetch the shards that hold some chunks of rows, where they are not here; does not wait."""
        if self._remote is None:
            return
        per_shard = self.split.shard_rows // self.split.chunk_rows
        wanted = dict.fromkeys((chunks // per_shard).tolist())
        self._remote.begin(self._shards[(field, index)] for index in wanted for field in self.arrays)

    def _file(self, field: str, index: int, shard: Shard, chunks: int) -> ShardFile:
        key = (field, index)
        with self._lock:
            file = self._open.get(key)
        if file is None:
            array = self.arrays[field]
            shape, dtype = (array.chunk_rows, *array.shape), np.dtype(array.dtype)
            file = ShardFile(self._require(shard), shape, dtype, chunks, self.manifest.codec, shard.identity)
            file.open()
            with self._lock:
                file = self._open.setdefault(key, file)
                if len(self._open) > (OPEN_SHARDS if self._remote is None else OPEN_FETCHED_SHARDS):
                    self._open.popitem(last=False)
        return file

    def _require(self, shard: Shard) -> Path:
        if self._remote is not None:
            return self._remote.fetch(shard)
        file = self.folder / shard.path
        try:
            found = file.stat().st_size
        except FileNotFoundError:
            raise DataError(f"shard `{file}` is missing; {self._remedy()}") from None
        if found != shard.bytes:
            raise DataError(f"shard `{file}` has {found} bytes instead of {shard.bytes}; {self._remedy()}")
        return file

    def _remedy(self) -> str:
        return f"remove `{self.folder}` and run the stage `prepare` again"
