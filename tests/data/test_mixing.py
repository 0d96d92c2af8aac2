from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from framework.data.ingest import ingest
from framework.data.loader import ShardLoader
from framework.data.mixing import MixedLoader
from framework.errors import DataError
from tests.data.test_ingest import RECIPE, Numbers


class Negative(Numbers):
    def read(self, partition: int) -> dict:
        return {"x": -1 - super().read(partition)["x"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("data")
    sources = (Numbers((300, 200)), Negative((100, 160)))
    return [ingest(replace(RECIPE, name=f"n{i}", source=s), root)[0] for i, s in enumerate(sources)]


def mixed(folders: list[Path], **options: int) -> MixedLoader:
    return MixedLoader([ShardLoader(f, "train", 32, **options) for f in folders], [3, 1])


def test_batches_come_by_weight_and_whole_from_one_dataset(folders: list[Path]) -> None:
    batches = [b["x"] for b in islice(mixed(folders), 400)]
    negative = [bool((b < 0).all()) for b in batches]
    assert all(n or (b >= 0).all() for n, b in zip(negative, batches, strict=True))
    assert 70 < sum(negative) < 130


def test_a_mixture_goes_on_exactly_where_its_state_was_taken(folders: list[Path]) -> None:
    whole = [b["x"].tolist() for b in islice(mixed(folders), 60)]
    first = mixed(folders)
    begun = [b["x"].tolist() for b in islice(first, 25)]
    second = mixed(folders)
    second.load_state_dict(first.state_dict())
    assert begun + [b["x"].tolist() for b in islice(second, 35)] == whole


def test_global_batches_are_the_same_for_two_ranks_in_micro_batches(folders: list[Path]) -> None:
    alone = [sorted(b["x"].tolist()) for b in islice(mixed(folders), 20)]
    ranks = [list(islice(mixed(folders, rank=r, world_size=2, micro_batch=8), 40)) for r in range(2)]
    together = [
        sorted(torch.cat([b["x"] for rank in ranks for b in rank[2 * i : 2 * i + 2]]).tolist()) for i in range(20)
    ]
    assert together == alone


def test_weights_that_fit_nothing_are_refused(folders: list[Path]) -> None:
    with pytest.raises(DataError, match="cannot be mixed"):
        MixedLoader([ShardLoader(folders[0], "train", 32)], [1, 2])
