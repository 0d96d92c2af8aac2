"""Every strategy gives the training that one process gives, and goes on where another one stopped."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from framework.errors import Preempted, UserError
from framework.record.run import RunRecord
from framework.runner import run
from framework.training.team import RankFailed
from tests.conftest import HOME, Compose

pytestmark = pytest.mark.integration
STRATEGIES = ("ddp", "fsdp2", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3", "deepspeed_offload")
TRAINING = (
    "model=vit", "model.dropout=0", "model.width=32", "model.depth=2", "stages=[prepare,train]", "trainer.max_epochs=2",
    "scheduler._target_=disturbance.cosine", "trainer.threads=1",
)  # fmt: skip


@pytest.fixture(autouse=True)
def disturbance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HOME / "scripts"))
    monkeypatch.setenv("PYTHONPATH", str(HOME / "scripts"))


def disturbed(monkeypatch: pytest.MonkeyPatch, step: int, do: str, rank: int | None = None) -> None:
    monkeypatch.setenv("DISTURB", json.dumps({"step": step, "do": do, "rank": rank}))


def weights(record: RunRecord) -> dict[str, torch.Tensor]:
    return load_file(record.folder / "model" / "trained" / "weights.safetensors")


def distance(a: RunRecord, b: RunRecord) -> float:
    x, y = weights(a), weights(b)
    assert x.keys() == y.keys()
    return max(float((x[k].float() - y[k].float()).abs().max()) for k in x)


def test_a_training_goes_on_with_any_strategy_and_number_of_ranks(
    small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = run(small(*TRAINING))
    plan = [("single", 1), *((s, 2) for s in STRATEGIES), ("fsdp2_tp", 4), ("ddp", 2)]
    folder = f"run_dir={tmp_path}/elastic"
    for i, (strategy, devices) in enumerate(plan):
        disturbed(monkeypatch, 3 + 3 * i, "SIGTERM", rank=devices - 1)
        wrap = ["strategy.plugin.wrap=['blocks.*.attention','blocks.?']"] if strategy == "fsdp2" else []
        with pytest.raises(Preempted, match="stopped by"):
            run(small(*TRAINING, folder, f"strategy={strategy}", f"strategy.devices={devices}", *wrap))
    monkeypatch.delenv("DISTURB")
    last = run(small(*TRAINING, folder))
    assert last.metrics["train/steps"] == undisturbed.metrics["train/steps"] == 38
    assert distance(undisturbed, last) < 1e-4
    assert last.metrics["val/loss"] == pytest.approx(undisturbed.metrics["val/loss"], abs=1e-4)


def test_a_rank_that_is_killed_ends_the_run_and_it_goes_on_to_the_same_bits(
    small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = (*TRAINING, "model.dropout=0.1", "strategy=ddp", "trainer.checkpoint.every_n_steps=5")
    undisturbed = run(small(*training))
    disturbed(monkeypatch, 23, "SIGKILL", rank=1)
    with pytest.raises(RankFailed, match="rank 1 was killed by SIGKILL"):
        run(small(*training, f"run_dir={tmp_path}/killed"))
    monkeypatch.delenv("DISTURB")
    assert distance(undisturbed, run(small(*training, f"run_dir={tmp_path}/killed"))) == 0


def test_a_rank_that_does_not_come_is_named(small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disturbed(monkeypatch, 7, "hang", rank=1)
    with pytest.raises(
        RankFailed, match="rank 1 has not ended a step for 3 s, after step 6; the others wait at step 7"
    ):
        run(small(*TRAINING, "strategy=ddp", "trainer.hang_s=3"))


def test_what_a_user_can_mend_is_said_as_in_one_process_and_a_bug_with_its_rank(
    small: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disturbed(monkeypatch, 5, "nan")
    with pytest.raises(UserError, match="training loss is nan at step 6; it took rows"):
        run(small(*TRAINING, "strategy=ddp"))
    disturbed(monkeypatch, 5, "raise", rank=0)
    with pytest.raises(RankFailed, match=r"rank 0: RuntimeError: a disturbance\n(.|\n)*disturbance.py"):
        run(small(*TRAINING, "strategy=ddp", f"run_dir={tmp_path}/run"))
    commands = [c.read_bytes().decode() for c in Path("/proc").glob("[0-9]*/cmdline") if c.exists()]
    assert not [c for c in commands if f"{tmp_path}/run" in c]  # no rank outlives the run
