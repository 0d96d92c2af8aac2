"""Dataset versions on disk: finding them, reading every byte of one, comparing two, removing one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from framework.errors import DataError, did_you_mean
from framework.record.catalogue import flatten
from framework.record.console import progress
from framework.record.files import checksum

from .manifest import MANIFEST, Manifest, Shard
from .store import ShardReader


def find_versions(root: Path) -> tuple[list[Manifest], list[str]]:
    """Return the manifests below a data root, by name, newest first; and what is said of those that cannot be read."""
    found, unreadable = [], []
    for file in root.glob(f"*/[!.]*/{MANIFEST}"):
        try:
            found.append(Manifest.read(file.parent))
        except DataError as error:
            unreadable.append(str(error))
    by_age = sorted(found, key=lambda m: str(m.provenance.get("created")), reverse=True)
    return sorted(by_age, key=lambda m: m.name), unreadable


def open_version(text: str, root: Path) -> Path:
    """Return the folder that a path, `name/version`, a version, or a name (its newest version) names.

    Raises:
        DataError: when there is none, with near misses.
    """
    for folder in (Path(text), root / text):
        if (folder / MANIFEST).exists():
            return folder
    versions, _ = find_versions(root)
    for manifest in versions:
        if text in (manifest.version, manifest.name):
            return root / manifest.name / manifest.version
    known = [f"{m.name}/{m.version}" for m in versions]
    hint = did_you_mean(text, known) or (f" There are {', '.join(known)}." if known else "")
    raise DataError(f"there is no dataset `{text}` below `{root}`.{hint}")


@dataclass(frozen=True)
class Damage:
    """A shard that is not as it was written: its path, the rows that are lost, and what is wrong."""

    shard: str
    rows: tuple[int, int]
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}: rows {self.rows[0]:,}-{self.rows[1]:,}: {self.reason}"


def verify(folder: Path, threads: int = 4) -> list[Damage]:
    """Read every shard of a version, compare its checksum, and where it differs name the chunks that are damaged."""
    manifest = Manifest.read(folder)
    shards = [(name, shard) for name, split in manifest.splits.items() for shard in split.shards]
    damages: list[Damage] = []
    with (
        progress(f"verifying {manifest.name}", len(shards), "shards") as advance,
        ThreadPoolExecutor(threads) as pool,
    ):
        for found in pool.map(lambda pair: list(_damages(folder, manifest, *pair)), shards):
            damages += found
            advance()
    return damages


def _damages(folder: Path, manifest: Manifest, split: str, shard: Shard) -> Iterator[Damage]:
    file = folder / shard.path
    everything = (shard.first_row, shard.first_row + shard.rows - 1)
    try:
        if file.stat().st_size == shard.bytes and checksum(file) == shard.sha256:
            return
        found = file.stat().st_size
    except FileNotFoundError:
        yield Damage(shard.path, everything, "it is missing")
        return
    if found != shard.bytes:
        yield Damage(shard.path, everything, f"it has {found:,} bytes instead of {shard.bytes:,}")
        return
    reader = ShardReader(folder, split, only=shard)
    size = reader.arrays[shard.field].chunk_rows
    damaged = False
    for chunk in range(shard.first_row // size, -(-(shard.first_row + shard.rows) // size)):
        try:
            reader.read_chunk(shard.field, chunk)
        except DataError as error:
            damaged = True
            last = min((chunk + 1) * size, shard.first_row + shard.rows) - 1
            yield Damage(shard.path, (chunk * size, last), str(error.__cause__ or error))
    if not damaged:
        yield Damage(shard.path, everything, "every chunk is whole, but the file's checksum differs")


def difference(a: Path, b: Path) -> dict[str, tuple[Any, Any]]:
    """Return what two versions differ in: what determined them, their fields, and the rows of their splits."""
    left, right = (_described(Manifest.read(folder)) for folder in (a, b))
    keys = [*left, *(k for k in right if k not in left)]
    return {k: (left.get(k, "-"), right.get(k, "-")) for k in keys if left.get(k, "-") != right.get(k, "-")}


def _described(manifest: Manifest) -> dict[str, Any]:
    identity = {k: v for k, v in manifest.provenance.get("identity", {}).items() if k != "fields"}
    shown = {
        **identity,
        "fields": {n: asdict(f) for n, f in manifest.fields.items()},
        "rows": {n: s.rows for n, s in manifest.splits.items()},
        "bytes": manifest.bytes,
    }
    return dict(flatten(shown))


def remove(folder: Path) -> None:
    """Remove a version: first from sight, so that nobody opens half of it, then from the disk."""
    aside = folder.with_name(f".{folder.name}.removed")
    folder.rename(aside)
    shutil.rmtree(aside)
