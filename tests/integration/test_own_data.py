"""The README's own-data examples, on small files made here."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from framework.record.run import RunRecord
from tests.conftest import Command

pytestmark = pytest.mark.integration


def test_a_folder_of_pictures_is_trained_on(command: Command, outputs: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, base in (("cat", 60), ("dog", 160)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(120):
            pixels = rng.integers(base - 40, base + 40, (20 + i % 5, 24, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    done = command(
        "data=image_folder", f"data.source.root={tmp_path}/pictures", "data.labels=[cat,dog]", f"outputs={outputs}",
        "export=none", "compress=none", "trainer.max_epochs=3", "trainer.global_batch_size=16", "model.widths=[8,16]",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert RunRecord(outputs / "latest").metrics["test/accuracy"] > 0.9


def test_text_files_become_byte_pairs_and_a_model_of_them(command: Command, outputs: Path, tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    for i in range(60):
        (tmp_path / "books" / f"{i}.txt").write_text(f"Chapter {i}. It was a bright cold day in April. " * 40)
    done = command(
        "recipe=stdlib_gpt", "data=text", f"data.source.root={tmp_path}/books", "model.vocabulary=300",
        "data.split.fractions={train: 0.8, val: 0.1, test: 0.1}",
        "model.width=32", "model.depth=2", "model.context=32", "trainer.max_steps=40", "trainer.validate_every_n_steps=20",
        "compress=none", "export=none", f"outputs={outputs}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert RunRecord(outputs / "latest").metrics["test/loss"] < 4
