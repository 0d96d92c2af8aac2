"""The README's own-data examples, on small files made here."""

import json
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


def test_lists_of_different_length_are_padded_and_trained_on(command: Command, outputs: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "records").mkdir()
    lines = [{"x": rng.normal(2 * (i % 2) - 1, 1, 1 + i % 8).tolist(), "label": i % 2} for i in range(600)]
    (tmp_path / "records" / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = command(
        "data=jsonl", f"data.source.root={tmp_path}/records", "data.labels=[low,high]", f"outputs={outputs}",
        "+data.fields={x: {shape: [null], dtype: float32}, label: {shape: [], dtype: int64}}",
        "+data.batch_transforms.pad={_target_: framework.data.batch_transforms.Pad, field: x, length: 8}",
        "model=mlp", "model.shape=[8]", "task.inputs=[x]", "~recipe", "export=none", "trainer.max_epochs=4",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert RunRecord(outputs / "latest").metrics["test/accuracy"] > 0.85


def test_datasets_are_mixed_and_a_run_of_them_can_be_run_again(command: Command, outputs: Path) -> None:
    sizes = ("model.widths=[8,16]", "trainer.max_epochs=1", "compress=none", "export=none", f"outputs={outputs}")
    mix = ("+data@data.mix.again=digits", "+data.mix.again.split.seed=5", "+data.mix.again.weight=0.5")
    done = command(*mix, *sizes)
    assert done.returncode == 0, done.stdout + done.stderr
    first = RunRecord((outputs / "latest").resolve())
    assert first["data"]["version"] != first["data"]["mix"]["again"]["version"]
    alone = command(*sizes)
    assert RunRecord(outputs / "latest").metrics["train/steps"] < first.metrics["train/steps"], alone.stderr
    again = command("runs", f"--outputs={outputs}", "rerun", str(first.folder), module=True)
    assert again.returncode == 0, again.stderr
    assert RunRecord(outputs / "latest").metrics["test/loss"] == first.metrics["test/loss"]
    wrong = command("+data@data.mix.other=synthetic", *sizes)
    assert wrong.returncode == 2
    assert "data.mix.other.fields: must be those of data.fields" in wrong.stderr


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
