import json
import signal
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file

from framework.errors import Preempted, UserError
from framework.record.run import RunRecord
from framework.runner import rerun, run
from framework.training.module import TrainingModule
from framework.training.stopping import Stop
from tests.conftest import Compose


def weights(record: RunRecord) -> dict[str, torch.Tensor]:
    return load_file(record.folder / "model" / "trained" / "weights.safetensors")


def equal(a: RunRecord, b: RunRecord) -> bool:
    x, y = weights(a), weights(b)
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def test_training_leaves_a_model_metrics_and_a_record_that_explains_itself(small: Compose) -> None:
    record = run(small("stages=[prepare,train,evaluate]"), ["typed=this"])
    assert record["status"] == "completed"
    assert record.metrics["test/accuracy"] > 0.5
    assert set(record["stages"]) == {"prepare", "train", "evaluate"}
    assert record["data"]["version"]
    assert record["environment"]["packages"]["torch"]
    assert record["effective"]["precision"] == "32-true"
    assert (record.folder / "overrides.txt").read_text() == "typed=this\n"
    assert not (record.folder / ".reserve").exists()
    header, *rows = (record.folder / "metrics.csv").read_text().splitlines()
    assert header == "step,metric,value"
    assert {row.split(",")[1] for row in rows} >= {"train/loss", "train/lr", "val/accuracy", "val/loss"}


def test_a_rerun_on_one_thread_is_bit_identical(small: Compose, outputs: Path) -> None:
    first = run(small("stages=[prepare,train,evaluate]", "trainer.threads=1"))
    second = rerun(first, outputs)
    assert second.folder != first.folder
    assert equal(first, second)
    assert first.metrics == second.metrics


@pytest.mark.parametrize("stop_at", [10, 19, 30, 37, 38])  # in an epoch, at its last batch, in the second, at the end
@pytest.mark.parametrize("micro_batch", [64, 16])
def test_a_run_stopped_by_a_signal_goes_on_to_the_same_weights(
    small: Compose, monkeypatch: pytest.MonkeyPatch, stop_at: int, micro_batch: int, tmp_path: Path
) -> None:
    options = ["stages=[prepare,train]", "trainer.threads=1", f"trainer.micro_batch_size={micro_batch}"]
    undisturbed = run(small(*options))
    config = small(*options, f"run_dir={tmp_path}/stopped")
    original = Stop.on_step

    def send(self: Stop, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        if step == stop_at:
            signal.raise_signal(signal.SIGTERM)
        original(self, trainer, module, step)

    with monkeypatch.context() as patch:
        patch.setattr(Stop, "on_step", send)
        with pytest.raises(Preempted, match=f"SIGTERM at step {stop_at}"):
            run(config)
    state = json.loads((tmp_path / "stopped" / "run.json").read_text())
    assert state["status"] == "preempted"
    resumed = run(config)
    assert resumed["status"] == "completed"
    assert resumed.metrics["train/steps"] == undisturbed.metrics["train/steps"]
    assert equal(undisturbed, resumed)


def test_a_run_directory_is_not_continued_with_another_config(small: Compose, tmp_path: Path) -> None:
    run(small("stages=[prepare]", f"run_dir={tmp_path}/run"))
    with pytest.raises(UserError, match=r"optimizer\.lr: 0\.003 -> 0\.1"):
        run(small("stages=[prepare]", f"run_dir={tmp_path}/run", "optimizer.lr=0.1"))


def test_a_loss_that_is_not_finite_ends_the_run_with_the_reason_and_advice(small: Compose, tmp_path: Path) -> None:
    config = small("optimizer.lr=1e12", "trainer.gradient_clip=null", f"run_dir={tmp_path}/run")
    with pytest.raises(UserError, match=r"(training loss|norm of the gradients) is (nan|inf) at step"):
        run(config)
    record = RunRecord(tmp_path / "run")
    assert record["status"] == "failed"
    assert "optimizer.lr" in record["error"]
    assert record["stages"]["train"]["status"] == "failed"


def test_the_best_weights_are_kept_not_the_last(small: Compose, tmp_path: Path) -> None:
    record = run(small("stages=[prepare,train]", "trainer.max_epochs=4", "optimizer.lr=0.05", f"run_dir={tmp_path}/r"))
    rows = [r.split(",") for r in (record.folder / "metrics.csv").read_text().splitlines()]
    seen = [float(value) for _, name, value in rows if name == "val/accuracy"]
    assert len(seen) == 4
    assert record.metrics["val/accuracy"] == max(seen)


def test_weights_are_judged_at_the_end_when_steps_end_between_validations(small: Compose) -> None:
    record = run(small("stages=[prepare,train]", "trainer.max_steps=5"))
    assert record.metrics["train/steps"] == 5
    assert "val/accuracy" in record.metrics


@pytest.mark.parametrize("precision", ["bf16", "bf16_true"])
def test_lower_precision_trains_and_what_follows_works_on_32_bit_floats(small: Compose, precision: str) -> None:
    stages = "stages=[prepare,train,evaluate,compress]"
    record = run(small(stages, f"precision={precision}", "compress=structured_pruning"))
    assert record["effective"]["precision"].startswith("bf16")
    assert {t.dtype for t in weights(record).values() if t.is_floating_point()} == {torch.float32}
    assert record.metrics["test/accuracy"] > 0.3
