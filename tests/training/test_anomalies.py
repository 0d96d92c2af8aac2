"""Steps that go wrong: told with their rows, kept, or left out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from framework.data.store import ShardReader
from framework.errors import UserError
from framework.record.run import RunRecord
from framework.runner import run
from framework.training.anomalies import Guard
from tests.conftest import Compose

ARRAYS = (
    "data=numpy", "model=mlp", "model.shape=[4]", "model.outputs=3", "model.hidden=[8]", "task=classification",
    "task.inputs=[x]", "task.classes=3", "stages=[prepare,train]",
    "trainer.global_batch_size=32", "trainer.log_every_n_steps=5", "trainer.threads=1",
    "+data.fields={x: {shape: [4], dtype: float32}, label: {shape: [], dtype: int64}}",
)  # fmt: skip


@pytest.fixture
def arrays(tmp_path: Path) -> str:
    """Rows with one value that is not finite, which the split by hash puts into training."""
    rng = np.random.default_rng(0)
    x, label = rng.normal(size=(400, 4)).astype("float32"), rng.integers(0, 3, 400)
    x[7, 2] = np.nan
    (tmp_path / "source").mkdir()
    np.savez(tmp_path / "source" / "rows.npz", x=x, label=label)
    return f"data.source.root={tmp_path}/source"


def row_that_is_not_finite(record: RunRecord) -> int:
    reader = ShardReader(Path(record["data"]["path"]), "train")
    return int(np.flatnonzero(~np.isfinite(reader.read("x", 0, reader.rows)).all(1))[0])


def kept(record: RunRecord) -> tuple[dict, dict[str, torch.Tensor]]:
    file = next((record.folder / "anomalies").glob("*.json"))
    return json.loads(file.read_text()), load_file(file.with_suffix(".safetensors"))


@pytest.mark.parametrize("micro_batch", [32, 8])
def test_the_rows_of_a_step_that_is_not_finite_are_told_and_kept(
    small: Compose, arrays: str, tmp_path: Path, micro_batch: int
) -> None:
    config = small(*ARRAYS, arrays, f"trainer.micro_batch_size={micro_batch}", f"run_dir={tmp_path}/run")
    with pytest.raises(UserError, match=r"(training loss|norm of the gradients) is nan at step \d+; it took rows"):
        run(config)
    record = RunRecord(tmp_path / "run")
    row = row_that_is_not_finite(record)
    said, batch = kept(record)
    assert said["not_finite"] == [row]
    assert f"of which {row} hold values that are not finite" in record["error"]
    reader = ShardReader(Path(record["data"]["path"]), "train")
    stored = reader.read("x", 0, reader.rows)[said["rows"]]
    assert np.array_equal(batch["x"].numpy(), stored, equal_nan=True)


def test_its_update_is_left_out_by_choice_and_training_goes_on(small: Compose, arrays: str, tmp_path: Path) -> None:
    record = run(small(*ARRAYS, arrays, "trainer.anomalies.max_skipped=5", "trainer.max_epochs=3"))
    assert record["status"] == "completed"
    assert record.metrics["train/skipped_steps"] in (2, 3)  # an epoch's last rows, fewer than a batch, are not used
    assert "is left out: the training loss is nan" in (record.folder / "log.txt").read_text()
    weights = load_file(record.folder / "model" / "trained" / "weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    rows = [line.split(",") for line in (record.folder / "metrics.csv").read_text().splitlines()]
    assert all(np.isfinite(float(value)) for _, name, value in rows if name == "train/loss")
    with pytest.raises(UserError, match=r"at step .* and 1 were left out before"):
        run(small(*ARRAYS, arrays, "trainer.anomalies.max_skipped=1", "trainer.max_epochs=3"))


def test_skipping_goes_on_after_a_stop_as_if_nothing_had_happened(small: Compose, arrays: str, tmp_path: Path) -> None:
    options = (*ARRAYS, arrays, "trainer.anomalies.max_skipped=5", "trainer.anomalies.spike=1.1")
    undisturbed = run(small(*options, "trainer.max_epochs=6"))
    folder = f"run_dir={tmp_path}/stopped"
    config = small(*options, "trainer.max_epochs=6", "trainer.time_budget_s=1e-9", folder)
    run(config)
    state = json.loads((tmp_path / "stopped" / "run.json").read_text())
    (tmp_path / "stopped" / "run.json").write_text(json.dumps({**state, "status": "preempted", "stages": {}}))
    (tmp_path / "stopped" / "config.yaml").write_text(
        (tmp_path / "stopped" / "config.yaml").read_text().replace("time_budget_s: 1.0e-09", "time_budget_s: null")
    )
    resumed = run(small(*options, "trainer.max_epochs=6", folder))
    assert resumed.metrics["train/skipped_steps"] == undisturbed.metrics["train/skipped_steps"]
    a, b = (load_file(r.folder / "model" / "trained" / "weights.safetensors") for r in (undisturbed, resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_loss_that_leaps_is_told() -> None:
    guard = Guard(spike=3.0, memory=4)
    assert [guard.complaint(loss, 1.0) for loss in (9.0, 1.0, 1.0, 1.0, 2.0)] == [None] * 5
    assert guard.complaint(4.0, 1.0) == "the training loss leapt from 1 to 4"
    assert guard.complaint(2.9, 1.0) is None
    assert "norm" in (guard.complaint(1.0, float("inf")) or "")


def test_a_leap_ends_a_training_with_its_rows(small: Compose, tmp_path: Path) -> None:
    config = small("trainer.anomalies.spike=1.001", "trainer.max_epochs=8", "optimizer.lr=0.1")
    with pytest.raises(UserError, match=r"training loss leapt from .* at step \d+; it took rows"):
        run(config)
