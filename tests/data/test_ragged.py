from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from framework.data.batch_transforms import Pad
from framework.data.ingest import ingest
from framework.data.loader import EvalLoader, ShardLoader
from framework.data.manifest import Field, Manifest
from framework.data.rows import Rows
from framework.data.store import ShardReader
from framework.data.versions import verify
from framework.errors import DataError
from tests.data.test_ingest import RECIPE


@dataclass(frozen=True)
class Documents:
    """Document n holds n % 23 values, each its number; a few are long, so that chunks are unequally full."""

    partition_rows: tuple[int, ...] = (150, 0, 350, 101)

    def partitions(self) -> list[int]:
        return list(range(len(self.partition_rows)))

    def read(self, partition: Any) -> Rows:
        first = sum(self.partition_rows[:partition])
        numbers = range(first, first + self.partition_rows[partition])
        documents = np.empty(len(numbers), dtype=object)
        boxes = np.empty(len(numbers), dtype=object)
        for i, n in enumerate(numbers):
            documents[i] = [n] * (n % 23 + (100 if n % 97 == 0 else 0))
            boxes[i] = np.full((n % 3, 4), n, dtype=np.float64)
        return {"text": documents, "boxes": boxes, "number": np.array(numbers, dtype=np.int64)}

    def fingerprint(self) -> str:
        return repr(self.partition_rows)


FIELDS = {"text": Field("uint16", (None,)), "boxes": Field("float32", (None, 4)), "number": Field("int64", ())}
DOCUMENTS = replace(RECIPE, name="documents", source=Documents(), fields=FIELDS, chunk_bytes=2000, shard_bytes=16000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ingest(DOCUMENTS, tmp_path_factory.mktemp("data"))[0]


def length_of(number: int) -> int:
    return number % 23 + (100 if number % 97 == 0 else 0)


def require_whole(batch: dict[str, torch.Tensor]) -> list[int]:
    """Assert that every row of a batch has the values that belong to it, and return the rows' numbers."""
    numbers: list[int] = batch["number"].tolist()
    for name, length in (("text", length_of), ("boxes", lambda n: n % 3)):
        values, offsets = batch[f"{name}.values"], batch[f"{name}.offsets"]
        assert offsets[-1, 1] == len(values)
        for n, (begin, end) in zip(numbers, offsets.tolist(), strict=True):
            row = values[begin:end]
            assert len(row) == length(n) and (row.to(torch.int64) == n).all()
    return numbers


@pytest.mark.parametrize("window_bytes", [4000, 64_000, 10_000_000])
@pytest.mark.parametrize("world_size", [1, 4])
def test_every_row_comes_once_with_its_own_values(folder: Path, window_bytes: int, world_size: int) -> None:
    options = {"window_bytes": window_bytes, "keep_last": True, "world_size": world_size}
    for epoch in range(2):
        seen: list[int] = []
        for rank in range(world_size):
            loader = ShardLoader(folder, "train", 32, rank=rank, **options)
            loader.load_state_dict({"epoch": epoch, "consumed": 0})
            seen += [n for batch in loader for n in require_whole(batch)]
        rows = Manifest.read(folder).splits["train"].rows
        assert len(seen) == len(set(seen)) == rows


def test_a_loader_of_ragged_rows_goes_on_where_it_was(folder: Path) -> None:
    whole = [batch["text.values"].tolist() for batch in ShardLoader(folder, "train", 32, window_bytes=8000)]
    second = ShardLoader(folder, "train", 32, window_bytes=8000)
    second.load_state_dict({"epoch": 0, "consumed": 5 * 32})
    assert [batch["text.values"].tolist() for batch in second] == whole[5:]


def test_validation_reads_ragged_rows_in_stored_order(folder: Path) -> None:
    for size in (7, 1000):
        numbers = [n for batch in EvalLoader(folder, "test", size) for n in require_whole(batch)]
        reader = ShardReader(folder, "test")
        assert numbers == reader.read("number", 0, reader.rows).tolist()


def test_zarr_finds_a_row_by_its_offsets(folder: Path) -> None:
    group = zarr.open_group(folder / "train", mode="r")
    values, offsets, numbers = group["text.values"][:], group["text.offsets"][:], group["number"][:]
    for n, (begin, end) in zip(numbers, offsets, strict=True):
        assert values[begin:end].tolist() == [n] * length_of(n)


def test_rows_are_padded_to_the_longest_or_cut_to_a_length(folder: Path) -> None:
    batch = next(iter(EvalLoader(folder, "train", 40)))
    padded = Pad("text", value=7)(batch)
    assert padded["text"].shape == (len(batch["number"]), batch["text.offsets"].diff(dim=1).max())
    cut = Pad("text", length=5)(batch)
    for n, row, length in zip(batch["number"].tolist(), cut["text"].tolist(), cut["text.lengths"], strict=True):
        assert length == min(5, length_of(n))
        assert row == [n] * length + [0] * (5 - length)
    assert set(cut) == {"text", "text.lengths", "boxes.values", "boxes.offsets", "number"}


def test_a_flipped_bit_in_ragged_values_is_named(folder: Path, tmp_path: Path) -> None:
    again, _ = ingest(replace(DOCUMENTS, shuffle=False), tmp_path)
    shard = next(s for s in Manifest.read(again).splits["train"].shards if s.field == "text.values")
    file = again / shard.path
    file.chmod(0o644)
    raw = bytearray(file.read_bytes())
    raw[10] ^= 1
    file.write_bytes(raw)
    assert [d.shard for d in verify(again)] == [shard.path]
    with pytest.raises(DataError, match=r"text\.values"):
        list(EvalLoader(again, "train", 100))


@pytest.mark.parametrize(
    ("field", "complaint"),
    [(Field("uint8", (None,)), "more than uint8 holds"), (Field("uint16", (None, 2)), "and the config says uint16")],
)
def test_values_that_do_not_fit_are_an_error(field: Field, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=complaint):
        ingest(replace(DOCUMENTS, fields={**FIELDS, "text": field}), tmp_path)
