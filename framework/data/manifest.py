"""A dataset version on disk: what it holds, where it came from, and how to know that it is whole.

`<root>/<name>/<version>/manifest.json` is written last; a folder without it is no dataset.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

from framework.errors import DataError, did_you_mean

MANIFEST = "manifest.json"
Codec = Literal["none", "zstd"]
FORMAT = 2


@dataclass(frozen=True)
class Field:
    """One field of a row: dtype, shape of one row, meaning. A first length of None: each row has its own (ragged)."""

    dtype: str
    shape: tuple[int | None, ...]
    meaning: str = ""

    @property
    def ragged(self) -> bool:
        """Whether rows have lengths of their own."""
        return self.shape[:1] == (None,)

    @property
    def value_shape(self) -> tuple[int, ...]:
        """The shape of what lies along the first axis: a row, or one value of a ragged row."""
        return tuple(n for n in self.shape if n is not None)

    @property
    def value_bytes(self) -> int:
        """Bytes of a row, or of one value of a ragged row."""
        return _bytes(self.dtype, self.value_shape)


@dataclass(frozen=True)
class Array:
    """One stored array of a split, cut along its first axis: dtype, shape of an element, how many, how they are cut."""

    dtype: str
    shape: tuple[int, ...]
    rows: int
    chunk_rows: int
    shard_rows: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one element along the first axis."""
        return _bytes(self.dtype, self.shape)


@dataclass(frozen=True)
class Shard:
    """One shard file of one array (a field, or a half of a ragged one): its rows, bytes on disk and SHA-256.

    `identity` is a crc32c over its index and the checksums of its chunks, which is known without reading the chunks.
    """

    field: str
    path: str
    first_row: int
    rows: int
    bytes: int
    sha256: str
    identity: int


@dataclass(frozen=True)
class Split:
    """One split: how many rows, how they are cut into chunks and shards, and values of a chunk by ragged field."""

    rows: int
    chunk_rows: int
    shard_rows: int
    shards: tuple[Shard, ...] = ()
    chunk_values: dict[str, int] = field(default_factory=dict)

    def arrays(self, fields: dict[str, Field]) -> dict[str, Array]:
        """Return the stored arrays by name: one for a field, two (see `ragged`) for a ragged one."""
        chunks, per_shard = -(-self.rows // self.chunk_rows), self.shard_rows // self.chunk_rows
        found = {}
        for name, spec in fields.items():
            if not spec.ragged:
                found[name] = Array(spec.dtype, spec.value_shape, self.rows, self.chunk_rows, self.shard_rows)
                continue
            size = self.chunk_values[name]
            found[offsets_of(name)] = Array("int64", (2,), self.rows, self.chunk_rows, self.shard_rows)
            found[values_of(name)] = Array(spec.dtype, spec.value_shape, chunks * size, size, per_shard * size)
        return found


def offsets_of(name: str) -> str:
    """Return the name of the array that says where the rows of a ragged field begin and end."""
    return f"{name}.offsets"


def values_of(name: str) -> str:
    """Return the name of the array that holds the values of a ragged field."""
    return f"{name}.values"


@dataclass(frozen=True)
class Manifest:
    """Everything that is known about a dataset version.

    `shuffled`: rows lie in an order shuffled at ingest, so that those of one shard are a random sample. On disk it
    carries a checksum of itself.
    """

    name: str
    version: str
    fields: dict[str, Field]
    splits: dict[str, Split]
    codec: Codec = "zstd"
    shuffled: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def bytes(self) -> int:
        """Bytes of all shards on disk."""
        return sum(s.bytes for split in self.splits.values() for s in split.shards)

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as plain values, with their checksum."""
        values = asdict(self)
        return {**values, "checksum": _checksum(values)}

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a dataset version.

        Raises:
            DataError: when there is none, or it is damaged.
        """
        file = folder / MANIFEST
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
            if raw["format"] != FORMAT:
                raise DataError(f"`{file}` has format {raw['format']}; this version of the framework reads {FORMAT}")
            if raw.pop("checksum") != _checksum(raw):
                raise ValueError("its checksum does not fit")
            return cls(
                name=raw["name"],
                version=raw["version"],
                fields={n: Field(f["dtype"], tuple(f["shape"]), f["meaning"]) for n, f in raw["fields"].items()},
                splits={
                    n: Split(**{**s, "shards": tuple(Shard(**x) for x in s["shards"])})
                    for n, s in raw["splits"].items()
                },
                codec=raw["codec"],
                shuffled=raw.get("shuffled", False),
                provenance=raw["provenance"],
            )
        except FileNotFoundError:
            raise DataError(f"`{folder}` is not a dataset: it has no {MANIFEST}") from None
        except (ValueError, KeyError, TypeError) as error:  # JSON's and Unicode's errors are ValueErrors
            raise DataError(f"`{file}` is damaged ({error}); remove `{folder}` and prepare it again") from None

    def split(self, name: str) -> Split:
        """Return a split, or raise a `DataError` that names those there are."""
        if name not in self.splits:
            known = list(self.splits)
            raise DataError(
                f"dataset {self.name}/{self.version} has no split `{name}`; it has {', '.join(known)}."
                f"{did_you_mean(name, known)}"
            )
        return self.splits[name]


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    import numpy as np

    return int(np.dtype(dtype).itemsize) * prod(shape)


def _checksum(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()
