"""From a source to a published dataset version.

1. The version is a hash of what determines the content: source, transforms, split, layout.
2. Dask reads the partitions; each one's rows are split by key, transformed, and left as pieces (`.npy`). Transforms
   that learn from the data are fitted before, one after another, each with a pass of its own.
3. The pieces' rows get a seeded global order (unless `store.shuffle` is off), and Dask writes the shards.
4. The manifest is written last, the folder made read-only and renamed into place.

Every piece and shard is a file that is complete or absent, so a killed ingest goes on where it was. A lock
keeps a second process waiting; it then finds the work done.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from framework.errors import DataError
from framework.record.files import folder_aside, write_atomic, write_json

from .manifest import FORMAT, MANIFEST, Codec, Field, Manifest, Shard, Split, offsets_of, values_of
from .npy import write_npy
from .pieces import Pieces
from .pools import LocalPool, Pool
from .ragged import Ragged, chunk_totals, chunked_bounds
from .rows import Rows, count, mix64, take
from .sources import Source
from .store import create_arrays, layout, write_shard
from .transforms import ROW_ID, Fingerprinted, Fitted, Published, Transform


@dataclass(frozen=True)
class Recipe:
    """What determines the content of a dataset version.

    Args:
        name: the dataset's name.
        source, transforms: the components, and their description as plain values for the hash.
        fields: the fields that the result must have.
        fractions, split_key, split_seed: which rows go to which split, by a hash of a key.
        split_column: a field that names each row's split instead; rows with other names are left out.
        codec, level, chunk_bytes, shard_bytes, shuffle, seed: how the rows are laid out.
    """

    name: str
    source: Source
    transforms: Sequence[Transform | Fitted]
    description: Mapping[str, Any]
    fields: Mapping[str, Field]
    fractions: Mapping[str, float]
    split_key: str | None = None
    split_column: str | None = None
    split_seed: int = 0
    codec: Codec = "zstd"
    level: int = 1
    chunk_bytes: int = 512 * 1024
    shard_bytes: int = 64 * 1024 * 1024
    shuffle: bool = True
    seed: int = 0

    def identity(self) -> dict[str, Any]:
        """Return what is hashed into the version, as plain values."""
        return {
            "format": FORMAT,
            "name": self.name,
            "source": self.source.fingerprint(),
            **self.description,
            "files": [t.fingerprint() for t in self.transforms if isinstance(t, Fingerprinted)],
            "fields": {n: asdict(f) for n, f in self.fields.items()},
            "split": [dict(self.fractions), self.split_key, self.split_column, self.split_seed],
            "store": [self.codec, self.level, self.chunk_bytes, self.shard_bytes, self.shuffle, self.seed],
        }


def version_of(identity: Mapping[str, Any]) -> str:
    """Return the version: 12 hexadecimal digits of a hash of the identity."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def ingest(recipe: Recipe, root: Path, pool: Pool | None = None) -> tuple[Path, bool]:
    """Publish the dataset version that a recipe describes, unless it is there.

    Args:
        recipe: what to make.
        root: the data root; the version goes to `<root>/<name>/<version>`.
        pool: where partitions and shards are worked on; by default two threads.

    Returns:
        the version's folder, and whether work was done.

    Raises:
        DataError: when the source is empty or malformed, or its fields are not those described.
    """
    pool = pool or LocalPool()
    identity = recipe.identity()
    version = version_of(identity)
    final = root / recipe.name / version
    if (final / MANIFEST).exists():
        return final, False
    staging = root / recipe.name / f".{version}.staging"
    staging.parent.mkdir(parents=True, exist_ok=True)
    with _lock(root / recipe.name / f".{version}.lock"):
        if (final / MANIFEST).exists():
            return final, False
        _open_staging(staging)
        recipe = _fit_transforms(recipe, staging, pool)
        pieces = _make_pieces(recipe, staging, pool)
        splits = _make_shards(recipe, staging, pieces, pool)
        provenance = {"identity": identity, "created": datetime.now(UTC).isoformat(timespec="seconds")}
        manifest = Manifest(recipe.name, version, dict(recipe.fields), splits, recipe.codec, recipe.shuffle, provenance)
        shutil.rmtree(staging / "pieces")
        shutil.rmtree(staging / "shards")
        (staging / "boot").unlink()
        shutil.rmtree(staging / "fitted", ignore_errors=True)
        for transform in recipe.transforms:
            for name, text in transform.files().items() if isinstance(transform, Published) else ():
                write_atomic(staging / name, text)
        write_json(staging / MANIFEST, manifest.to_json())
        _publish(staging, final)
    return final, True


def _open_staging(staging: Path) -> None:
    """Make the staging folder, or go on in it; after a restart of the machine its files may be torn, and it goes."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    here = boot.read_text().strip() if boot.exists() else ""
    mark = staging / "boot"
    if staging.exists() and not (mark.exists() and mark.read_text() == here):
        shutil.rmtree(staging)
    staging.mkdir(exist_ok=True)
    mark.write_text(here)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        path.unlink(missing_ok=True)


def _publish(staging: Path, final: Path) -> None:
    for file in staging.rglob("*"):
        if file.is_file():
            file.chmod(0o444)
    if final.exists():  # a folder without a manifest is no dataset
        shutil.rmtree(final)
    staging.replace(final)


# -- transforms that learn ----------------------------------------------------------------------------------------


def _fit_transforms(recipe: Recipe, staging: Path, pool: Pool) -> Recipe:
    """Return the recipe with every transform that learns from the data replaced by what it learned."""
    transforms: list[Transform | Fitted] = list(recipe.transforms)
    for i, transform in enumerate(transforms):
        if not isinstance(transform, Fitted):
            continue
        done = staging / "fitted" / f"{i}.pickle"
        if not done.exists():
            before = replace(recipe, transforms=transforms[:i])
            calls = [(before, transform, partition, n) for n, partition in enumerate(recipe.source.partitions())]
            what = f"measuring {recipe.name} for {type(transform).__name__}"
            measures = pool.run(_measure, calls, what, "partitions")
            write_atomic(done, pickle.dumps(transform.fit([m for part in measures for m in part])))
        transforms[i] = pickle.loads(done.read_bytes())
    return replace(recipe, transforms=transforms)


def _measure(recipe: Recipe, fitted: Fitted, partition: Any, index: int) -> list[Any]:
    found = []
    for split, part in _read_splits(recipe, partition, index).items():
        if fitted.over == "all" or split == "train":
            for transform in recipe.transforms:
                assert not isinstance(transform, Fitted)
                part = transform(part)
            found.append(fitted.measure(part))
    return found


# -- pieces -----------------------------------------------------------------------------------------------------


def _make_pieces(recipe: Recipe, staging: Path, pool: Pool) -> list[dict[str, int]]:
    """Read, split and transform every partition; return the rows of each piece by split."""
    partitions = list(recipe.source.partitions())
    if not partitions:
        raise DataError(f"the source of `{recipe.name}` is empty: it has no partitions")
    calls = [(recipe, partition, i, staging / "pieces" / f"{i:06d}") for i, partition in enumerate(partitions)]
    pieces = pool.run(_make_piece, calls, f"reading {recipe.name}", "partitions")
    for split in recipe.fractions:
        if not sum(p.get(split, 0) for p in pieces):
            total = sum(sum(p.values()) for p in pieces)
            raise DataError(f"split `{split}` of `{recipe.name}` would have no rows; the source gave {total} in all")
    return pieces


def _make_piece(recipe: Recipe, partition: Any, index: int, folder: Path) -> dict[str, int]:
    done = folder / "rows.json"
    if done.exists():
        return json.loads(done.read_text())
    counts: dict[str, int] = {}
    with folder_aside(folder) as aside:
        for split, part in _read_splits(recipe, partition, index).items():
            for transform in recipe.transforms:
                assert not isinstance(transform, Fitted)
                part = transform(part)
            part.pop(ROW_ID, None)
            counts[split] = count(part)
            _save(recipe, part, aside / split)
        write_json(aside / "rows.json", counts, durable=False)
    return counts


def _read_splits(recipe: Recipe, partition: Any, index: int) -> dict[str, Rows]:
    """Return the raw rows of a partition by split, each row with its number."""
    rows = recipe.source.read(partition)
    total = count(rows)
    if not total:
        return {}
    row_ids = (np.uint64(index) << np.uint64(40)) + np.arange(total, dtype=np.uint64)
    return {s: take({**rows, ROW_ID: row_ids}, mask) for s, mask in _split_masks(recipe, rows, row_ids).items()}


def _split_masks(recipe: Recipe, rows: Rows, row_ids: npt.NDArray[np.uint64]) -> dict[str, npt.NDArray[np.bool_]]:
    """Return a mask for each split. A row's split depends on its key alone (default: its place in the source)."""
    if recipe.split_column is not None:
        if recipe.split_column not in rows:
            raise DataError(
                f"data.split.column: the source has no field `{recipe.split_column}`; it has {', '.join(rows)}"
            )
        names = rows[recipe.split_column].astype(str)
        return {name: names == name for name in recipe.fractions}
    if recipe.split_key is None:
        keys = row_ids
    elif recipe.split_key not in rows:
        raise DataError(f"data.split.key: the source has no field `{recipe.split_key}`; it has {', '.join(rows)}")
    else:
        keys = np.array([_hash_key(k) for k in rows[recipe.split_key]], dtype=np.uint64)
    draws = mix64(keys ^ mix64(np.array([recipe.split_seed], dtype=np.uint64))) / float(2**64)
    bounds = np.cumsum([0.0, *recipe.fractions.values()])
    bounds[-1] = 1.1
    return {
        name: (draws >= low) & (draws < high)
        for name, low, high in zip(recipe.fractions, bounds, bounds[1:], strict=False)
    }


def _hash_key(key: Any) -> int:
    raw = key if isinstance(key, bytes) else str(key).encode()
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


def _save(recipe: Recipe, rows: Rows, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, spec in recipe.fields.items():
        if name not in rows:
            raise DataError(f"data.fields: there is no field `{name}` after the transforms, only {', '.join(rows)}")
        array = rows[name]
        if spec.ragged:
            part = Ragged.of(name, array, spec)
            write_npy(folder / f"{values_of(name)}.npy", part.values)
            write_npy(folder / f"{offsets_of(name)}.npy", part.offsets)
            continue
        if array.shape[1:] != spec.shape or array.dtype != np.dtype(spec.dtype):
            raise DataError(
                f"data.fields.{name}: rows are {array.dtype} {list(array.shape[1:])} after the transforms, "
                f"and the config says {spec.dtype} {list(spec.shape)}"
            )
        write_npy(folder / f"{name}.npy", np.ascontiguousarray(array))


# -- shards -----------------------------------------------------------------------------------------------------


def _make_shards(recipe: Recipe, staging: Path, pieces: Sequence[Mapping[str, int]], pool: Pool) -> dict[str, Split]:
    """Write every shard of every split; return the splits as the manifest lists them."""
    splits: dict[str, Split] = {}
    calls: list[tuple[Any, ...]] = []
    fields = dict(recipe.fields)
    for split in recipe.fractions:
        sizes = np.array([p.get(split, 0) for p in pieces], dtype=np.int64)
        line = Pieces(staging / "pieces", split, sizes, recipe.seed if recipe.shuffle else None)
        plan = splits[split] = _plan(recipe, line)
        arrays = plan.arrays(fields)
        create_arrays(staging / split, arrays, recipe.codec, recipe.level)
        calls += [
            (recipe, staging, line, plan, name, i) for i in range(-(-plan.rows // plan.shard_rows)) for name in arrays
        ]
    written: list[tuple[str, Shard]] = pool.run(_make_shard, calls, f"writing {recipe.name}", "shards")
    return {
        name: replace(plan, shards=tuple(shard for split, shard in written if split == name))
        for name, plan in splits.items()
    }


def _plan(recipe: Recipe, line: Pieces) -> Split:
    """Choose how a split is cut; a ragged field counts with the mean of its rows, and its fullest chunk is found."""
    ragged = {n: f for n, f in recipe.fields.items() if f.ragged}
    row_bytes = sum(f.value_bytes for f in recipe.fields.values() if not f.ragged)
    for name, spec in ragged.items():
        total = sum(len(line.load(i, values_of(name))) for i, size in enumerate(line.sizes) if size)
        row_bytes += -(-total * spec.value_bytes // max(1, line.rows)) + 16
    plan = layout(line.rows, row_bytes, recipe.chunk_bytes, recipe.shard_bytes)
    fullest = {}
    for name in ragged:
        stretches = range(0, plan.rows, plan.shard_rows)
        lengths = (line.lengths(name, at, min(at + plan.shard_rows, plan.rows)) for at in stretches)
        fullest[name] = max(1, *(int(chunk_totals(n, plan.chunk_rows).max()) for n in lengths))
    return replace(plan, chunk_values=fullest)


def _make_shard(recipe: Recipe, staging: Path, line: Pieces, plan: Split, array: str, index: int) -> tuple[str, Shard]:
    done = staging / "shards" / f"{line.split}-{array}-{index:06d}.json"
    if done.exists():
        return line.split, Shard(**json.loads(done.read_text()))
    first = index * plan.shard_rows
    last = min(first + plan.shard_rows, plan.rows)
    name = array if array in recipe.fields else array.rpartition(".")[0]
    spec = recipe.fields[name]
    if not spec.ragged:
        rows = line.fixed(name, spec, first, last)
    elif array == values_of(name):
        rows = line.values(name, spec, first, last, plan)
    else:
        size = plan.chunk_values[name]
        rows = chunked_bounds(line.lengths(name, first, last), plan.chunk_rows, size)
        rows = rows + index * (plan.shard_rows // plan.chunk_rows) * size
    geometry = plan.arrays(dict(recipe.fields))[array]
    shard = write_shard(staging / line.split, array, geometry, index, rows, recipe.codec, recipe.level)
    write_json(done, asdict(shard), durable=False)
    return line.split, shard
