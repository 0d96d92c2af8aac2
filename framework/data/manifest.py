"""A dataset version on disk: what it holds, where it came from, and how to know that it is whole.

`<root>/<name>/<version>/manifest.json` is written last; a folder without it is no dataset.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from framework.errors import DataError, did_you_mean

MANIFEST = "manifest.json"
Codec = Literal["none", "zstd"]
FORMAT = 2


@dataclass(frozen=True)
class Field:
    """One field of a row: dtype, shape of one row, meaning."""

    dtype: str
    shape: tuple[int, ...]
    meaning: str = ""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        import numpy as np

        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Shard:
    """One shard file of one field: the rows it holds, its bytes on disk and its SHA-256.

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
    """One split: how many rows, and how they are cut into chunks and shards."""

    rows: int
    chunk_rows: int
    shard_rows: int
    shards: tuple[Shard, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """Everything that is known about a dataset version.

    On disk it carries a checksum of itself.
    """

    name: str
    version: str
    fields: dict[str, Field]
    splits: dict[str, Split]
    codec: Codec = "zstd"
    provenance: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, all fields together, uncompressed."""
        return sum(f.row_bytes for f in self.fields.values())

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
                    n: Split(s["rows"], s["chunk_rows"], s["shard_rows"], tuple(Shard(**x) for x in s["shards"]))
                    for n, s in raw["splits"].items()
                },
                codec=raw["codec"],
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


def _checksum(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()
