from pathlib import Path

import pytest

from framework.record.catalogue import find_runs
from tests.conftest import Command

pytestmark = pytest.mark.integration
SMALL = ["-m", "stages=[prepare,train]", "trainer.max_epochs=1", "model.widths=[8]", "compress=none"]


def test_a_grid_runs_every_combination_as_one_group(command: Command, outputs: Path) -> None:
    done = command(*SMALL, "optimizer=adamw,sgd", "seed=1,2", f"outputs={outputs}")
    assert done.returncode == 0, done.stderr
    runs = find_runs(outputs)
    assert len(runs) == 4
    assert {r["status"] for r in runs} == {"completed"}
    assert len({r["group"] for r in runs}) == 1
    assert runs[0]["group"]
    assert len({(r.folder / "config.yaml").read_text() for r in runs}) == 4


def test_one_bad_point_stops_a_sweep_before_it_starts(command: Command, outputs: Path) -> None:
    done = command(*SMALL, "precision=fp32,fp16", "seed=1,2", f"outputs={outputs}")
    assert done.returncode == 2
    assert "2 of 4 points of the sweep are not sound" in done.stderr
    assert "precision=fp16" in done.stderr
    assert "use precision=bf16" in done.stderr
    assert not find_runs(outputs)


def test_a_point_that_fails_does_not_keep_others_from_running(command: Command, outputs: Path) -> None:
    done = command(*SMALL, "data.source.loader=load_digit,load_digits", f"outputs={outputs}")
    assert done.returncode == 2
    assert "Did you mean `load_digits`" in done.stdout
    assert "1 of 2 trials failed" in done.stderr
    assert sorted(r["status"] for r in find_runs(outputs)) == ["completed", "failed"]
