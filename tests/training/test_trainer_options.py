"""What `trainer` offers beyond steps and batches."""

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from framework.errors import UserError
from framework.record.run import RunRecord
from framework.runner import run, unfinished
from framework.training.checkpoints import CheckpointFolder, read_checkpoint
from tests.conftest import Compose

TRAINING = ("stages=[prepare,train]", "trainer.threads=1")


def weights(record: RunRecord) -> dict[str, torch.Tensor]:
    return load_file(record.folder / "model" / "trained" / "weights.safetensors")


def rows_of(record: RunRecord, metric: str) -> list[float]:
    rows = [row.split(",") for row in (record.folder / "metrics.csv").read_text().splitlines()]
    return [float(value) for _, name, value in rows if name == metric]


def checkpoints(record: RunRecord) -> list[Path]:
    return sorted((record.folder / "checkpoints").glob("step_*"))


def test_averaged_weights_are_judged_and_kept(small: Compose) -> None:
    plain = run(small(*TRAINING))
    averaged = run(small(*TRAINING, "trainer.ema_decay=0.9"))
    differences = [(weights(plain)[n] - weights(averaged)[n]).abs().max() for n in weights(plain)]
    assert max(differences) > 1e-4
    state, trained = read_checkpoint(checkpoints(averaged)[-1])
    assert torch.equal(state["averaged"]["head.weight"], weights(averaged)["head.weight"])
    assert torch.equal(trained["head.weight"], weights(plain)["head.weight"])  # training itself is not touched


def test_training_ends_when_validation_gets_no_better(small: Compose) -> None:
    record = run(small(*TRAINING, "optimizer.lr=0", "trainer.max_epochs=30", "trainer.patience=2", "+task.monitor=loss",
                       "+task.mode=min", "model.dropout=0", "model.widths=[4]"))  # fmt: skip
    assert record.metrics["train/steps"] < 30 * 19
    assert "no better val/loss in 2 validations" in (record.folder / "log.txt").read_text()


def test_training_ends_when_its_time_is_over_with_a_judged_model(small: Compose) -> None:
    began = time.monotonic()
    record = run(small(*TRAINING, "trainer.max_epochs=10000", "trainer.time_budget_s=1"))
    assert time.monotonic() - began < 60
    assert "trainer.time_budget_s is over" in (record.folder / "log.txt").read_text()
    assert record["status"] == "completed"
    assert "val/accuracy" in record.metrics


def test_a_training_begins_with_the_weights_of_a_run_a_checkpoint_or_a_file(small: Compose, tmp_path: Path) -> None:
    first = run(small(*TRAINING))
    still = (*TRAINING, "optimizer.lr=0", "trainer.max_steps=1")
    for start in (first.folder, checkpoints(first)[-1], first.folder / "model/trained/weights.safetensors"):
        record = run(small(*still, f"trainer.start_from={start}"))
        assert torch.equal(weights(record)["head.weight"], weights(first)["head.weight"])
    other = run(small(*still, f"trainer.start_from={first.folder}", "data.labels=[a,b,c,d,e,f,g,h,i,j,k]"))
    assert "left at random: head.weight, head.bias" in (other.folder / "log.txt").read_text()
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(UserError, match="is no run, checkpoint or safetensors file"):
        run(small(*still, f"trainer.start_from={tmp_path}/text"))
    save_file({"another.weight": torch.zeros(3)}, tmp_path / "another.safetensors")
    with pytest.raises(UserError, match=r"nothing in .* fits CNN"):
        run(small(*still, f"trainer.start_from={tmp_path}/another.safetensors"))


def test_activations_computed_again_change_no_bit(small: Compose) -> None:
    training = (*TRAINING, "model=vit", "model.width=32", "model.depth=2", "model.dropout=0.1", "trainer.max_steps=8")
    plain, again = run(small(*training)), run(small(*training, "trainer.recompute_activations=true"))
    assert all(torch.equal(weights(plain)[name], tensor) for name, tensor in weights(again).items())


def test_checkpoints_are_kept_by_rule(small: Compose) -> None:
    rules = (
        "trainer.checkpoint.every_n_steps=5",
        "trainer.checkpoint.keep=1",
        "trainer.checkpoint.keep_every_n_steps=10",
    )
    for background in ("false", "true"):
        record = run(small(*TRAINING, *rules, f"trainer.checkpoint.in_background={background}"))
        assert [int(c.name[5:]) for c in checkpoints(record)] == [10, 20, 30, 38]


def test_a_damaged_checkpoint_is_passed_over(small: Compose, caplog: pytest.LogCaptureFixture) -> None:
    record = run(small(*TRAINING))
    last, before = checkpoints(record)[::-1][:2]
    content = bytearray((last / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (last / "weights.safetensors").write_bytes(content)
    store = CheckpointFolder(record.folder / "checkpoints")
    found = store.newest()
    assert found is not None
    assert found[0]["step"] == int(before.name[5:])
    assert "weights.safetensors` is damaged" in caplog.text
    (before / "checkpoint.json").write_text("{")
    with pytest.raises(UserError, match="none of the 2 checkpoints"):
        store.newest()


def test_resume_auto_takes_up_the_newest_unfinished_run_of_the_same_config(small: Compose) -> None:
    config = small(*TRAINING, "resume=auto")
    assert unfinished(config) is None
    record = run(config)
    assert unfinished(config) is None
    state = json.loads((record.folder / "run.json").read_text())
    (record.folder / "run.json").write_text(json.dumps({**state, "status": "preempted", "stages": {}}))
    assert unfinished(small(*TRAINING, "resume=auto", "optimizer.lr=1")) is None
    assert unfinished(config) == record.folder
    assert run(config).folder == record.folder


def test_the_log_has_what_a_person_wants_to_know(small: Compose) -> None:
    record = run(small(*TRAINING))
    for metric in ("train/gradient_norm", "train/samples_per_s", "train/waiting_for_data", "train/memory_gb",
                   "train/checkpoint_age_s", "train/tflops_per_s"):  # fmt: skip
        assert rows_of(record, metric), metric
    assert max(rows_of(record, "train/waiting_for_data")) <= 1
