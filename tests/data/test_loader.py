from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from framework.data.ingest import ingest
from framework.data.loader import EvalLoader, ShardLoader
from framework.data.order import Order
from framework.data.store import ShardReader
from tests.data.test_ingest import RECIPE, Numbers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:

    return ingest(replace(RECIPE, source=Numbers((300, 500, 200))), tmp_path_factory.mktemp("data"))[0]


def load(folder: Path, **options: object) -> ShardLoader:
    return ShardLoader(folder, "train", 32, window_bytes=1024, **options)


def test_an_epoch_gives_no_row_twice_and_epochs_differ(folder: Path) -> None:
    loader = load(folder)
    first, second = (torch.cat([b["x"] for b in loader]).tolist() for _ in range(2))
    assert len(first) == len(set(first)) == len(loader) * 32
    assert first != second
    assert loader.epoch == 2


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_global_batches_are_the_same_for_any_number_of_ranks(folder: Path, world_size: int) -> None:
    alone = [sorted(b["x"].tolist()) for b in load(folder)]
    ranks = [list(load(folder, rank=r, world_size=world_size)) for r in range(world_size)]
    together = [sorted(torch.cat([b["x"] for b in step]).tolist()) for step in zip(*ranks, strict=True)]
    assert together == alone


@pytest.mark.parametrize("stop", [1, 7, 20])
@pytest.mark.parametrize("micro_batch", [32, 8])
def test_a_loader_goes_on_exactly_where_its_state_was_taken(folder: Path, stop: int, micro_batch: int) -> None:
    loader = load(folder, micro_batch=micro_batch)
    whole = [b["x"].tolist() for b in loader] + [b["x"].tolist() for b in loader]
    first = load(folder, micro_batch=micro_batch)
    batches = iter(first)
    seen = [next(batches)["x"].tolist() for _ in range(stop)]
    second = load(folder, micro_batch=micro_batch)
    second.load_state_dict(first.state_dict())
    seen += [b["x"].tolist() for b in second] + [b["x"].tolist() for b in second]
    assert seen == whole


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 32), (2, 8)])
def test_the_rows_of_the_next_batch_are_known(folder: Path, world_size: int, micro_batch: int) -> None:
    stored = ShardReader(folder, "train")
    x = torch.from_numpy(stored.read("x", 0, stored.rows))
    ranks = [load(folder, rank=r, world_size=world_size, micro_batch=micro_batch) for r in range(world_size)]
    iterators = [iter(r) for r in ranks]
    for _ in range(5):
        said = ranks[0].describe_next()
        batches = [next(i)["x"] for i in iterators for _ in range(32 // world_size // micro_batch)]
        assert torch.equal(torch.cat(batches), x[said["rows"]])
        assert said["epoch"] == 0


def test_validation_is_in_stored_order_and_whole(folder: Path) -> None:
    loader = EvalLoader(folder, "test", 7)
    rows = torch.cat([b["x"] for b in loader])
    assert len(rows) == loader.reader.rows
    assert loader.rows(0, 2)["x"].tolist() == rows[:2].tolist()
    shares = [torch.cat([b["x"] for b in EvalLoader(folder, "test", 7, rank=r, world_size=3)]) for r in range(3)]
    assert torch.equal(torch.cat(shares), rows)


def test_the_order_is_a_permutation_in_windows_and_its_tail() -> None:
    order = Order(rows=1003, chunk_rows=17, group=1, batch=32, lanes=8, window=12, seed=3, epoch=5)
    seen: list[int] = []
    for lane in range(order.lane_count):
        for window in range(-(-order.full_batches // order.window_batches)):
            runs, permutation = order.window_of(window, lane)
            rows = np.concatenate([np.arange(a, b) for a, b in runs])
            assert sorted(permutation) == list(range(len(rows)))
            seen += rows.tolist()
    runs, _ = order.tail()
    seen += [row for a, b in runs for row in range(a, b)]
    assert sorted(seen) == list(range(1003))


def test_no_rank_reads_much_more_than_its_share(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = ShardReader.read_chunk
    monkeypatch.setattr(ShardReader, "read_chunk", lambda s, f, c, out=None: read.append(c) or original(s, f, c, out))
    for rank in range(2):
        loader = load(folder, rank=rank, world_size=2)
        loader.resident = {}
        read.clear()
        rows = sum(len(b["x"]) for b in loader)
        assert len(read) * loader.reader.split.chunk_rows <= 1.15 * rows + 8 * loader.reader.split.chunk_rows


def test_class_counts_of_batches_are_those_of_uniform_sampling(tmp_path: Path) -> None:
    source = Numbers((2000, 2000, 2000, 2000))  # sorted: the class is the thousand
    folder, _ = ingest(replace(RECIPE, source=source, fractions={"train": 1.0}, chunk_bytes=512), tmp_path)
    for seed in range(5):
        counts = np.zeros(8)
        statistic = 0.0
        loader = ShardLoader(folder, "train", 64, seed=seed, window_bytes=16 * 1024)
        for batch in loader:
            counts = np.bincount(batch["x"].numpy() // 1000, minlength=8)
            statistic += ((counts - 8) ** 2 / 8).sum()
        assert chi2.sf(statistic, df=7 * len(loader)) > 0.01


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_epoch_with_its_short_last_batch_gives_every_row_once(folder: Path, world_size: int) -> None:
    ranks = [load(folder, rank=r, world_size=world_size, keep_last=True, micro_batch=8) for r in range(world_size)]
    seen = [[b["x"].tolist() for b in loader] for loader in ranks]
    assert [len(batches) for batches in seen] == [len(loader) for loader in ranks]
    rows = sorted(x for batches in seen for batch in batches for x in batch)
    stored = ShardReader(folder, "train")
    assert rows == sorted(stored.read("x", 0, stored.rows))
    resumed = load(folder, keep_last=True, micro_batch=8)
    resumed.load_state_dict({"epoch": 0, "consumed": (len(resumed) - 1) * 8})
    if world_size == 1:
        assert [b["x"].tolist() for b in resumed] == seen[0][-1:]
    assert all(loader.epoch == 1 for loader in ranks)


def test_two_iterations_of_one_loader_at_once_do_not_mix(folder: Path) -> None:
    whole = [b["x"].tolist() for b in load(folder)]
    loader = load(folder)
    first = iter(loader)
    begun = [next(first)["x"].tolist() for _ in range(3)]
    loader.load_state_dict({"epoch": 0, "consumed": 0})
    second = [b["x"].tolist() for b in loader]
    loader.load_state_dict({"epoch": 0, "consumed": 96})
    assert begun + [b["x"].tolist() for b in first] == whole
    assert second == whole


def test_batches_that_are_kept_are_not_written_over(folder: Path) -> None:
    loader = load(folder)
    whole = [b["x"].clone() for b in loader]
    loader = load(folder)
    kept = [b["x"] for b in loader]
    for a, b in zip(kept, whole, strict=True):
        assert torch.equal(a, b)


def test_windows_are_used_again_and_iterators_side_by_side_have_their_own(folder: Path) -> None:
    loader = load(folder)
    whole = [b["x"].tolist() for b in load(folder)]
    for _ in range(3):
        for _batch in loader:
            pass
    assert len(loader.windows) <= 3
    loader.load_state_dict({"epoch": 0, "consumed": 0})
    first, second = iter(loader), iter(loader)
    pairs = [(next(first)["x"], next(second)["x"]) for _ in range(5)]
    first.close()
    assert [a.tolist() for a, _ in pairs] == whole[:5]
    assert [b.tolist() for _, b in pairs] == whole[1:6]  # it begins where the loader stands then
