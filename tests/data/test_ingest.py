import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from framework.data.ingest import Recipe, ingest
from framework.data.manifest import Codec, Field, Manifest, Split
from framework.data.pools import LocalPool
from framework.data.rows import Rows
from framework.data.store import ShardReader, create_arrays, write_shard
from framework.errors import DataError


@dataclass(frozen=True)
class Numbers:
    """Rows 0, 1, 2, ... in partitions."""

    partition_rows: tuple[int, ...] = (30, 50, 20)
    fail_at: int | None = None

    def partitions(self) -> list[int]:
        return list(range(len(self.partition_rows)))

    def read(self, partition: Any) -> Rows:
        if partition == self.fail_at:
            raise DataError("this partition is malformed")
        first = sum(self.partition_rows[:partition])
        return {"x": np.arange(first, first + self.partition_rows[partition], dtype=np.int64)}

    def fingerprint(self) -> str:
        return repr(self.partition_rows)


RECIPE = Recipe(
    name="numbers",
    source=Numbers(),
    transforms=[],
    description={},
    fields={"x": Field("int64", ())},
    fractions={"train": 0.7, "test": 0.3},
    chunk_bytes=64,
    shard_bytes=256,
)


def rows_of(folder: Path) -> dict[str, list[int]]:
    readers = {name: ShardReader(folder, name) for name in Manifest.read(folder).splits}
    return {name: r.read("x", 0, r.rows).tolist() for name, r in readers.items()}


def test_every_row_lands_in_exactly_one_split_and_rows_are_shuffled(tmp_path: Path) -> None:
    folder, made = ingest(RECIPE, tmp_path)
    rows = rows_of(folder)
    assert made
    assert sorted(rows["train"] + rows["test"]) == list(range(100))
    assert rows["train"] != sorted(rows["train"])


def test_the_same_ingest_finds_its_work_done_and_a_changed_source_makes_a_new_version(tmp_path: Path) -> None:
    first, _ = ingest(RECIPE, tmp_path)
    assert ingest(RECIPE, tmp_path) == (first, False)
    second, made = ingest(replace(RECIPE, source=Numbers((30, 50, 21))), tmp_path)
    assert made
    assert second != first
    assert len(rows_of(first)["train"]) + len(rows_of(first)["test"]) == 100


def test_a_record_keeps_its_split_when_others_are_added(tmp_path: Path) -> None:
    keyed = replace(RECIPE, split_key="x")
    small = rows_of(ingest(keyed, tmp_path)[0])
    large = rows_of(ingest(replace(keyed, source=Numbers((30, 50, 20, 100))), tmp_path)[0])
    assert set(small["train"]) <= set(large["train"])
    assert set(small["test"]) <= set(large["test"])


def test_an_ingest_that_failed_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    undisturbed, _ = ingest(RECIPE, tmp_path / "a")
    broken = replace(RECIPE, source=Numbers(fail_at=2))
    with pytest.raises(DataError, match="malformed"):
        ingest(broken, tmp_path / "b", LocalPool("synchronous"))
    assert not list((tmp_path / "b").rglob("manifest.json"))
    resumed, _ = ingest(RECIPE, tmp_path / "b")
    shards = [[s.sha256 for s in Manifest.read(f).split("train").shards] for f in (undisturbed, resumed)]
    assert shards[0] == shards[1]
    assert rows_of(resumed) == rows_of(undisturbed)


def test_what_was_staged_before_a_restart_of_the_machine_is_not_trusted(tmp_path: Path) -> None:
    broken = replace(RECIPE, source=Numbers(fail_at=2))
    with pytest.raises(DataError, match="malformed"):
        ingest(broken, tmp_path, LocalPool("synchronous"))
    (mark,) = tmp_path.glob("numbers/.*.staging/boot")
    for piece in mark.parent.glob("pieces/*/*/x.npy"):
        piece.write_bytes(b"torn")
    mark.write_text("another boot")
    assert sorted(row for rows in rows_of(ingest(RECIPE, tmp_path)[0]).values() for row in rows) == list(range(100))


def test_an_empty_split_and_a_wrong_shape_are_errors_that_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="would have no rows"):
        ingest(replace(RECIPE, source=Numbers((2,)), fractions={"train": 0.99, "test": 0.01}), tmp_path)
    with pytest.raises(DataError, match=r"rows are int64 .* and the config says float32"):
        ingest(replace(RECIPE, fields={"x": Field("float32", ())}), tmp_path)


@pytest.mark.parametrize("damage", ["remove", "truncate", "flip"])
def test_a_damaged_shard_is_an_error_that_names_it(tmp_path: Path, damage: str) -> None:
    folder, _ = ingest(RECIPE, tmp_path)
    shard = folder / Manifest.read(folder).split("train").shards[1].path
    shard.chmod(0o644)
    content = bytearray(shard.read_bytes())
    if damage == "remove":
        shard.unlink()
    elif damage == "truncate":
        shard.write_bytes(content[:-3])
    else:
        content[5] ^= 16
        shard.write_bytes(content)
    with pytest.raises(DataError, match=str(shard)):
        rows_of(folder)


def test_a_torn_manifest_is_an_error_and_a_folder_without_one_is_no_dataset(tmp_path: Path) -> None:
    folder, _ = ingest(RECIPE, tmp_path)
    text = (folder / "manifest.json").read_text()
    torn = shutil.copytree(folder, tmp_path / "torn")
    (torn / "manifest.json").chmod(0o644)
    (torn / "manifest.json").write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match="is damaged"):
        Manifest.read(torn)
    (torn / "manifest.json").unlink()
    with pytest.raises(DataError, match="is not a dataset"):
        Manifest.read(torn)
    altered = text.replace('"rows": 100', '"rows": 101').replace('"chunk_rows": ', '"chunk_rows": 1')
    (folder / "manifest.json").chmod(0o644)
    (folder / "manifest.json").write_text(altered)
    with pytest.raises(DataError, match="checksum"):
        Manifest.read(folder)


@pytest.mark.parametrize("codec", ["zstd", "none"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 1)])
def test_zarr_reads_what_is_written_and_the_reader_what_zarr_does(tmp_path: Path, codec: Codec, shape: tuple) -> None:
    values = np.random.default_rng(0).integers(0, 1000, (137, *shape), dtype=np.int32)
    split = Split(137, 10, 40)
    fields = {"x": Field("int32", shape)}
    array = split.arrays(fields)["x"]
    create_arrays(tmp_path / "v" / "train", {"x": array}, codec, 1)
    shards = [
        write_shard(tmp_path / "v" / "train", "x", array, i, values[i * 40 : (i + 1) * 40], codec, 1) for i in range(4)
    ]
    np.testing.assert_array_equal(zarr.open_group(tmp_path / "v" / "train")["x"][:], values)
    manifest = Manifest("n", "v", fields, {"train": replace(split, shards=tuple(shards))}, codec)
    (tmp_path / "v" / "manifest.json").write_text(json.dumps(manifest.to_json()))
    reader = ShardReader(tmp_path / "v", "train")
    for first, last in ((0, 137), (0, 10), (5, 25), (39, 41), (120, 137), (136, 137)):
        np.testing.assert_array_equal(reader.read("x", first, last), values[first:last])
