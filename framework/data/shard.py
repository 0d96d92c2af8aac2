"""One shard file of a Zarr v3 array: encoding it, and reading single chunks straight into memory.

The layout is that of Zarr's sharding codec (ZEP 2): chunks one after another, each followed by its crc32c, and at the
end an index of (offset, length) pairs with a crc32c of its own. The array is cut along its first axis only. Zarr reads
these files as its own; here they are read without its machinery, which costs ten times what reading a chunk does, and
written with chunks in order, so that equal rows make equal bytes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import crc32c as castagnoli
import numpy as np
import numpy.typing as npt

from framework.errors import DataError

from .manifest import Codec

CRC_BYTES = 4
_EMPTY = 2**64 - 1


_local = threading.local()


def _scratch(size: int) -> memoryview:
    """Return memory of this thread, used again at the next call."""
    if getattr(_local, "memory", None) is None or len(_local.memory) < size:
        _local.memory = np.empty(size + size // 4, dtype=np.uint8)
    return _local.memory[:size].data


def crc32c(data: Any) -> bytes:
    """Return the crc32c (Castagnoli) of a buffer, as Zarr stores it: four bytes, little endian."""
    return castagnoli.crc32c(data, gil_release_mode=-1).to_bytes(CRC_BYTES, "little")


def encode_shard(
    values: npt.NDArray, chunk_rows: int, chunks: int, codec: Codec, level: int
) -> Generator[bytes | memoryview, None, int]:
    """Yield the parts of a shard file, in order; return its identity (see `Shard`).

    Args:
        values: the rows; the last chunk is padded with zeros when they do not fill it.
        chunk_rows, chunks: rows of a chunk, and chunks of a whole shard (rows may be fewer, and then so are chunks).
        codec, level: how chunks are compressed.
    """
    from numcodecs.zstd import Zstd

    compressor = Zstd(level=level) if codec == "zstd" else None
    index = np.full((chunks, 2), _EMPTY, dtype="<u8")
    at = 0
    checksums = b""
    for i in range(-(-len(values) // chunk_rows)):
        chunk = np.ascontiguousarray(values[i * chunk_rows : (i + 1) * chunk_rows])
        if len(chunk) < chunk_rows:
            chunk = np.concatenate([chunk, np.zeros((chunk_rows - len(chunk), *chunk.shape[1:]), chunk.dtype)])
        raw = chunk.reshape(-1).view(np.uint8)
        data = compressor.encode(raw) if compressor else raw.data
        index[i] = at, len(data) + CRC_BYTES
        at += len(data) + CRC_BYTES
        yield data
        yield (checksum := crc32c(data))
        checksums += checksum
    table = index.tobytes()
    yield table
    yield crc32c(table)
    return castagnoli.crc32c(table + checksums)


@cache
def _zstd() -> Any:
    from numcodecs.zstd import Zstd

    return Zstd()


@dataclass(frozen=True)
class ShardFile:
    """Reads chunks of one shard file. Safe to use from several threads.

    Args:
        path: the file.
        chunk_shape: shape of a chunk, rows first.
        dtype: of its elements.
        chunks: chunks of a whole shard.
        codec: how chunks are compressed.
        identity: what the manifest says of it (see `Shard`).
    """

    path: Path
    chunk_shape: tuple[int, ...]
    dtype: np.dtype
    chunks: int
    codec: Codec
    identity: int

    @cached_property
    def _file(self) -> int:
        return os.open(self.path, os.O_RDONLY)

    def open(self) -> None:
        """Open the file now, so that it stays readable whoever removes it."""
        _ = self._file

    @cached_property
    def _index(self) -> list[tuple[int, int]]:
        length = self.chunks * 16
        at = os.fstat(self._file).st_size - length - CRC_BYTES
        table = os.pread(self._file, length, at) if at >= 0 else b""
        if len(table) != length or os.pread(self._file, CRC_BYTES, at + length) != crc32c(table):
            raise DataError(f"shard `{self.path}` is damaged: the checksum of its index does not fit")
        pairs = [(int(o), int(n)) for o, n in np.frombuffer(table, dtype="<u8").reshape(-1, 2)]
        checksums = b"".join(os.pread(self._file, CRC_BYTES, o + n - CRC_BYTES) for o, n in pairs if o != _EMPTY)
        if castagnoli.crc32c(table + checksums) != self.identity:
            raise DataError(f"`{self.path}` is not the shard that was written here: its chunks have other checksums")
        return pairs

    @cached_property
    def _chunk_bytes(self) -> int:
        return int(np.prod(self.chunk_shape)) * self.dtype.itemsize

    def read_chunk(self, index: int, out: npt.NDArray) -> None:
        """Read a whole chunk.

        Args:
            index: which chunk of this shard.
            out: where to, contiguous, [rows of a chunk, ...].

        Raises:
            DataError: when the chunk is not there, or its checksum does not fit.
        """
        offset, size = self._index[index]
        view = out.reshape(-1).view(np.uint8).data
        stored = bytearray(CRC_BYTES)
        if self.codec == "none":
            data = view
            fits = size == self._chunk_bytes + CRC_BYTES
        else:
            fits = CRC_BYTES < size <= os.fstat(self._file).st_size
            data = _scratch(size - CRC_BYTES) if fits else view
        if not fits or os.preadv(self._file, [data, stored], offset) != size or crc32c(data) != stored:
            raise DataError(f"the checksum of chunk {index} does not fit")
        if self.codec == "zstd":
            _zstd().decode(data, view)

    def __del__(self) -> None:
        if "_file" in self.__dict__:
            os.close(self._file)
