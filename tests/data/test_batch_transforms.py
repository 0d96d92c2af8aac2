from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from framework.data.batch_transforms import NextToken, Normalise, RandomCrop, RandomFlip, apply
from framework.data.ingest import ingest
from framework.data.loader import EvalLoader, ShardLoader
from framework.data.manifest import Field
from framework.data.rows import Rows, row_keys
from tests.data.test_ingest import RECIPE, Numbers


class Pictures(Numbers):
    def read(self, partition: int) -> Rows:
        x = super().read(partition)["x"]
        return {"x": x, "image": np.random.default_rng(0).integers(0, 255, (len(x), 1, 6, 6)).astype(np.uint8)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = {"x": Field("int64", ()), "image": Field("uint8", (1, 6, 6))}
    recipe = replace(RECIPE, source=Pictures((300, 500)), fields=fields)
    return ingest(recipe, tmp_path_factory.mktemp("data"))[0]


CHANCE = (RandomFlip("image"), RandomCrop("image", 2))


def by_row(batches: list[dict[str, torch.Tensor]]) -> dict[int, bytes]:
    return {int(x): image.numpy().tobytes() for b in batches for x, image in zip(b["x"], b["image"], strict=True)}


def test_augmentation_is_the_same_for_any_number_of_ranks_and_micro_batches_and_after_a_resume(folder: Path) -> None:
    alone = by_row(list(ShardLoader(folder, "train", 32, transforms=CHANCE)))
    ranks = [
        list(ShardLoader(folder, "train", 32, rank=r, world_size=4, micro_batch=4, transforms=CHANCE)) for r in range(4)
    ]
    assert by_row([b for r in ranks for b in r]) == alone
    resumed = ShardLoader(folder, "train", 32, transforms=CHANCE)
    resumed.load_state_dict({"epoch": 0, "consumed": 96})
    rest = by_row(list(resumed))
    assert rest == {x: image for x, image in alone.items() if x in rest}
    second_epoch = by_row(list(resumed))
    common = alone.keys() & second_epoch.keys()
    assert sum(alone[x] != second_epoch[x] for x in common) > len(common) / 2


def test_validation_is_left_as_it_is(folder: Path) -> None:
    plain, chance = (by_row(list(EvalLoader(folder, "test", 32, transforms=t))) for t in ((), CHANCE))
    assert plain == chance


def test_a_flip_mirrors_about_half_and_a_crop_shifts_by_up_to_its_padding() -> None:
    x = torch.arange(36, dtype=torch.float32).view(1, 1, 6, 6).repeat(1000, 1, 1, 1)
    keys = row_keys(0, 0, 0, 1000)
    flipped = RandomFlip("image").draw({"image": x}, keys)["image"]
    mirrored = (flipped[:, 0, 0, 0] == 5).sum().item()
    assert 430 < mirrored < 570
    cropped = RandomCrop("image", 2).draw({"image": x}, keys)["image"]
    assert cropped.shape == x.shape
    padded = torch.nn.functional.pad(x[:1], [2] * 4)[0, 0]
    windows = {padded[i : i + 6, j : j + 6].numpy().tobytes() for i in range(5) for j in range(5)}
    assert {c.numpy().tobytes() for c in cropped} == windows


def test_normalise_and_next_token_do_what_they_say() -> None:
    batch = apply([Normalise("x", [1.0, 3.0], [2.0, 4.0])], {"x": torch.tensor([[[3]], [[7]]]).view(1, 2, 1)}, None)
    assert batch["x"].flatten().tolist() == [1.0, 1.0]
    shifted = NextToken()({"tokens": torch.tensor([[1, 2, 3]], dtype=torch.uint8)})
    assert shifted["tokens"].tolist() == [[1, 2]]
    assert shifted["next"].tolist() == [[2, 3]]
