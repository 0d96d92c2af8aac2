from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from framework.config.schema import DataConfig
from framework.data.ingest import Recipe, ingest
from framework.data.manifest import Field, Manifest
from framework.data.pools import LocalPool, open_pool
from framework.data.rows import Rows, permuted
from framework.data.store import ShardReader
from framework.data.text_transforms import BytePairs, Windows
from framework.data.transforms import Deduplicate, Drop, Filter, Resize, Standardise
from framework.errors import DataError
from tests.data.test_ingest import RECIPE, Numbers


@dataclass(frozen=True)
class Given:
    """Rows as given, in two partitions."""

    rows: tuple[tuple[str, tuple[Any, ...]], ...]

    def partitions(self) -> list[int]:
        return [0, 1]

    def read(self, partition: int) -> Rows:
        made = {}
        for name, values in self.rows:
            array = np.empty(len(values), dtype=object)
            array[:] = values
            half = np.array_split(np.arange(len(values)), 2)[partition]
            made[name] = array[half] if isinstance(values[0], (str, bytes)) else np.array(values)[half]
        return made

    def fingerprint(self) -> str:
        return str(hash(self.rows))


def given(**fields: Any) -> Given:
    return Given(tuple((n, tuple(v)) for n, v in fields.items()))


def stored(folder: Path, field: str) -> dict[str, np.ndarray]:
    readers = {s: ShardReader(folder, s) for s in Manifest.read(folder).splits}
    return {s: r.read(field, 0, r.rows) for s, r in readers.items()}


def test_standardising_learns_from_the_train_split_only(tmp_path: Path) -> None:
    recipe = replace(RECIPE, transforms=[Standardise("x")], fields={"x": Field("float32", ())})
    raw = stored(ingest(RECIPE, tmp_path)[0], "x")
    made = stored(ingest(replace(recipe, description={"t": 1}), tmp_path)[0], "x")
    assert made["train"].mean() == pytest.approx(0, abs=1e-5)
    assert made["train"].std() == pytest.approx(1, abs=1e-5)
    mean, std = raw["train"].mean(), raw["train"].std()
    np.testing.assert_allclose(sorted(made["test"]), sorted((raw["test"] - mean) / std), rtol=1e-4)


def test_equal_rows_are_kept_once_in_all_splits_together(tmp_path: Path) -> None:
    words = [f"w{i % 40}" for i in range(100)]
    source = given(word=words, x=range(100))
    recipe = replace(RECIPE, source=source, transforms=[Deduplicate("word"), Drop(["word"])])
    rows = stored(ingest(recipe, tmp_path)[0], "x")
    assert sorted([*rows["train"], *rows["test"]]) == list(range(40))


def test_rows_are_filtered_and_split_by_a_column(tmp_path: Path) -> None:
    source = given(x=range(100), part=["train" if i % 3 else "test" for i in range(100)])
    transforms = [Filter("x", ">=", 50), Drop(["part"])]
    recipe = replace(RECIPE, source=source, transforms=transforms, split_column="part")
    rows = stored(ingest(recipe, tmp_path)[0], "x")
    assert sorted(rows["test"]) == [i for i in range(50, 100) if i % 3 == 0]
    assert sorted(rows["train"]) == [i for i in range(50, 100) if i % 3]


def test_byte_pairs_are_learned_and_give_the_text_back(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    texts = [f"the quick brown fox jumps over the lazy dog number {i} " * 20 for i in range(40)]
    learned = BytePairs("text", vocabulary=400)
    fitted = learned.fit([learned.measure({"text": np.array(texts[:20], dtype=object)})])
    encoded = fitted({"text": np.array(texts[20:], dtype=object)})["text"]
    tokenizer = Tokenizer.from_str(fitted.tokenizer)
    assert tokenizer.decode(encoded[3][:-1].tolist()) == texts[23]
    assert len(encoded[3]) < len(texts[23]) / 3
    (tmp_path / "tokenizer.json").write_text(fitted.tokenizer)
    loaded = BytePairs("text", tokenizer=tmp_path / "tokenizer.json")
    again = loaded.fit([loaded.measure({})])({"text": np.array(texts[20:], dtype=object)})["text"]
    np.testing.assert_array_equal(again[3], encoded[3])
    before = loaded.fingerprint()
    (tmp_path / "tokenizer.json").write_text("{}")
    assert loaded.fingerprint() != before
    with pytest.raises(DataError, match="is not a tokenizer"):
        loaded.fit([])
    recipe = Recipe(
        "text", given(text=texts), [learned, Windows("text", "tokens", 17)], {},
        {"tokens": Field("uint16", (17,))}, {"train": 0.8, "test": 0.2},
    )  # fmt: skip
    windows = stored(ingest(recipe, tmp_path)[0], "tokens")["train"]
    assert windows.shape[1] == 17
    with pytest.raises(DataError, match="more than uint8 holds"):
        Windows("text", "tokens", 17, "uint8")({"text": encoded})


def test_an_ingest_killed_after_learning_does_not_learn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(RECIPE, transforms=[Standardise("x")], fields={"x": Field("int64", ())})
    with pytest.raises(DataError, match="float32"):
        ingest(recipe, tmp_path, LocalPool("synchronous"))
    monkeypatch.setattr(Standardise, "measure", lambda self, rows: pytest.fail("measured again"))
    with pytest.raises(DataError, match="float32"):
        ingest(recipe, tmp_path, LocalPool("synchronous"))


def test_images_of_any_size_become_one_size() -> None:
    images = np.empty(2, dtype=object)
    images[:] = [np.full((3, 10, 20), 7, np.uint8), np.full((3, 8, 8), 9, np.uint8)]
    out = Resize("image", [8, 8])({"image": images})["image"]
    assert out.shape == (2, 3, 8, 8)
    assert (out[0] == 7).all()
    assert (out[1] == 9).all()


def test_processes_give_the_same_version_as_threads(tmp_path: Path) -> None:
    recipe = replace(RECIPE, source=Numbers((30, 50, 20)))
    shards = []
    for scheduler in ("threads", "processes"):
        folder, _ = ingest(recipe, tmp_path / scheduler, LocalPool(scheduler))
        shards.append([s.sha256 for s in Manifest.read(folder).split("train").shards])
    assert shards[0] == shards[1]


@pytest.mark.integration
def test_a_cluster_gives_the_same_version_and_its_dashboard_is_on_loopback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"scheduler": "distributed", "workers": 2, "memory_limit": "1GB"}
    config = OmegaConf.merge(OmegaConf.structured(DataConfig), {"dask": settings})
    caplog.set_level("INFO")
    with open_pool(config, tmp_path) as pool:
        folder, _ = ingest(RECIPE, tmp_path / "cluster", pool)
    assert "dashboard http://127.0.0.1:" in caplog.text
    here, _ = ingest(RECIPE, tmp_path / "here")
    shards = [[s.sha256 for s in Manifest.read(f).split("train").shards] for f in (folder, here)]
    assert shards[0] == shards[1]


@pytest.mark.parametrize("count", [1, 2, 7, 1000, 4097])
def test_the_order_at_ingest_is_a_permutation_known_piece_by_piece(count: int) -> None:
    whole = permuted(np.arange(count), count, seed=3)
    assert sorted(whole) == list(range(count))
    np.testing.assert_array_equal(permuted(np.arange(count // 2, count), count, seed=3), whole[count // 2 :])
    if count >= 1000:
        assert abs(np.corrcoef(whole, np.arange(count))[0, 1]) < 0.1
        assert (whole != permuted(np.arange(count), count, seed=4)).mean() > 0.9
