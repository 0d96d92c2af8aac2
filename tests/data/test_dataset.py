import shutil
from pathlib import Path

import pytest

from framework.config.compose import compose_experiment
from framework.data.dataset import prepare_dataset
from framework.errors import DataError


def test_a_version_that_is_wanted_is_made_again_or_refused_when_the_source_has_changed(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(60):
        (texts / f"{i}.txt").write_text(f"text number {i}, " * 30)
    overrides = [
        "recipe=stdlib_gpt", f"data.source.root={texts}", "data.source.patterns=['*.txt']",
        "data.split.fractions={train: 0.8, val: 0.1, test: 0.1}", f"data.store.root={tmp_path}/datasets",
    ]  # fmt: skip
    folder, made = prepare_dataset(compose_experiment(overrides)[0].data)
    assert made
    wanted = compose_experiment([*overrides, f"data.version={folder.name}"])[0].data
    assert prepare_dataset(wanted) == (folder, False)
    shutil.rmtree(folder)
    assert prepare_dataset(wanted) == (folder, True)
    shutil.rmtree(folder)
    (texts / "0.txt").write_text("other words " * 30)
    with pytest.raises(DataError, match=f"stdlib_text/{folder.name} is wanted, and the source now gives"):
        prepare_dataset(wanted)
