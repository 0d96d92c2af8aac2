import html
import json
from pathlib import Path

import pytest

from framework.record.run import RunRecord
from tests.conftest import Command

pytestmark = pytest.mark.integration


def test_the_language_recipe_runs_whole_at_small_size(command: Command, outputs: Path) -> None:
    sizes = ["model.width=32", "model.depth=2", "model.context=64", "trainer.max_steps=60", "data.source.max_files=60"]
    split = "data.split.fractions={train: 0.8, val: 0.1, test: 0.1}"
    done = command("recipe=stdlib_gpt", split, *sizes, "measure.seconds=0.05", f"outputs={outputs}")
    assert done.returncode == 0, done.stdout + done.stderr
    record = RunRecord(outputs / "latest")
    m = record.metrics
    assert m["test/bits_per_byte"] < 6  # 8 for a model that knows nothing
    assert m["export/onnx/bits_per_byte"] == pytest.approx(m["compressed/bits_per_byte"], abs=1e-3)
    assert m["compress/structured_pruning/parameters"] < m["model/parameters"]
    sample = json.loads((record.folder / "evaluation/text_sample.json").read_text())["text"]
    assert sample in html.unescape((record.folder / "report.html").read_text())
