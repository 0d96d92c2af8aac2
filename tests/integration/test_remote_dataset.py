"""Datasets behind a URL, against a real S3-speaking server on loopback."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from framework.data.files import file_system
from framework.data.ingest import ingest
from framework.data.loader import EvalLoader, ShardLoader
from framework.data.manifest import Manifest
from framework.data.remote import RemoteVersion, ShardCache, publish
from framework.errors import DataError
from framework.record.run import RunRecord
from tests.conftest import Command
from tests.data.test_ingest import RECIPE, Numbers
from tests.integration.conftest import s3_server

pytestmark = pytest.mark.integration


@pytest.fixture
def store() -> Iterator[None]:
    with s3_server("bucket"):
        yield


@pytest.fixture
def published(store: None, tmp_path: Path) -> tuple[Path, str]:
    folder, _ = ingest(replace(RECIPE, source=Numbers((300, 500, 200))), tmp_path / "here")
    return folder, publish(folder, "s3://bucket/datasets")


def test_batches_from_s3_are_those_from_disk_and_shards_are_fetched_once(
    published: tuple[Path, str], tmp_path: Path
) -> None:
    folder, url = published
    cache = ShardCache(tmp_path / "cache")
    for split, make in (("train", ShardLoader), ("test", EvalLoader)):
        here, there = (list(make(place, split, 32, cache=cache)) for place in (folder, url))
        assert all(torch.equal(a["x"], b["x"]) for a, b in zip(here, there, strict=True))
    file_system(url)[0].rm("bucket", recursive=True)
    assert len(list(ShardLoader(url, "train", 32, cache=cache))) == len(ShardLoader(folder, "train", 32))


def test_a_rank_fetches_its_share_of_the_shards_only(published: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = published
    shards = len(Manifest.read(folder).split("train").shards)
    for rank in range(2):
        cache = tmp_path / f"cache{rank}"
        options = {"rank": rank, "world_size": 2, "window_bytes": 1024, "cache": ShardCache(cache)}
        assert list(ShardLoader(url, "train", 32, **options))
        fetched = [f for f in cache.rglob("c/*") if f.is_file() and f.name[0] != "."]
        assert shards // 2 - 1 <= len(fetched) <= shards // 2 + 2


def test_the_cache_stays_within_its_bound_and_right_for_several_readers(
    published: tuple[Path, str], tmp_path: Path
) -> None:
    folder, url = published
    shards = Manifest.read(folder).split("train").shards
    limit = 3 * max(s.bytes for s in shards)
    cache = ShardCache(tmp_path / "cache", limit)
    expected = [b["x"].tolist() for b in ShardLoader(folder, "train", 32)]

    def read(_: int) -> list[list[int]]:
        return [b["x"].tolist() for b in ShardLoader(url, "train", 32, cache=cache)]

    with ThreadPoolExecutor(4) as pool:
        assert all(found == expected for found in pool.map(read, range(4)))
    kept = [
        f for f in (tmp_path / "cache").rglob("*") if f.is_file() and f.name[0] != "." and f.name != "manifest.json"
    ]
    assert sum(f.stat().st_size for f in kept) <= limit


def test_damaged_and_missing_shards_and_datasets_are_named(published: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = published
    first, second = Manifest.read(folder).split("train").shards[:2]
    system, base = file_system(url)
    content = bytearray(system.cat_file(f"{base}/{first.path}"))
    content[3] ^= 1
    system.pipe_file(f"{base}/{first.path}", bytes(content))
    system.rm_file(f"{base}/{second.path}")
    version = RemoteVersion(url, ShardCache(tmp_path / "cache"))
    with pytest.raises(DataError, match=f"{url}/{first.path}. is damaged"):
        version.fetch(first)
    with pytest.raises(DataError, match=f"{url}/{second.path}. is missing"):
        version.fetch(second)
    with pytest.raises(DataError, match="is not a dataset"):
        _ = RemoteVersion("s3://bucket/nothing", ShardCache(tmp_path / "cache")).folder


def test_an_experiment_keeps_its_data_behind_a_url(
    store: None, command: Command, outputs: Path, tmp_path: Path
) -> None:
    arguments = [
        "data.store.root=s3://bucket/datasets", f"data.loader.cache={tmp_path}/cache", f"outputs={outputs}",
        "stages=[prepare,train,evaluate]", "trainer.max_epochs=2",
    ]  # fmt: skip
    first = command(*arguments)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "made: train 1,2" in first.stdout
    record = RunRecord(outputs / "latest")
    assert record["data"]["path"].startswith("s3://bucket/datasets/digits/")
    second = command(*arguments, f"data.version={record['data']['version']}")
    assert "found: train 1,2" in second.stdout, second.stdout + second.stderr
    assert RunRecord(outputs / "latest").metrics == record.metrics
