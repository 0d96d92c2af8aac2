"""Sweeps as a user starts them: `python run.py -m`."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml

from framework.record.catalogue import find_runs
from framework.record.run import RunRecord
from tests.conftest import HOME, Command

pytestmark = pytest.mark.integration
TINY = [
    "-m",
    "stages=[prepare,train]",
    "trainer.max_epochs=1",
    "model.widths=[8]",
    "compress=none",
    "trainer.threads=1",
]
RECIPE = """
# @package _global_
# digits, with a search space of its own
defaults:
  - digits
  - override /compress: none
  - override /hydra/sweeper: optuna
  - override /hydra/sweeper/pruner: asha
  - _self_
stages: [prepare, train, report]
trainer: {max_epochs: 4, threads: 1}
model: {widths: [8, 16]}
hydra:
  sweeper:
    n_trials: 12
    n_jobs: 2
    params:
      optimizer: adamw, sgd
      optimizer.lr: tag(log, interval(1e-4, 1e-1))
      optimizer.momentum: {space: "interval(0.5, 0.99)", when: {optimizer: sgd}}
    enqueue: [{optimizer: adamw, optimizer.lr: 0.01}]
"""


def sweep_in(outputs: Path) -> tuple[Path, dict, list[dict[str, str]]]:
    (folder,) = (outputs / "sweeps").iterdir()
    with (folder / "trials.csv").open() as file:
        return folder, json.loads((folder / "study.json").read_text()), list(csv.DictReader(file))


def test_a_grid_runs_every_combination_as_one_group_and_a_point_that_fails_keeps_none_from_running(
    command: Command, outputs: Path
) -> None:
    loaders = "data.source.loader=load_digit,load_digits"
    done = command(*TINY, "optimizer=adamw,sgd", loaders, "hydra.sweeper.n_jobs=2", f"outputs={outputs}")
    assert done.returncode == 2
    assert "Did you mean `load_digits`" in done.stdout
    assert "2 of 4 trials failed" in done.stderr
    runs = find_runs(outputs)
    assert sorted(r["status"] for r in runs) == ["completed", "completed", "failed", "failed"]
    folder, study, trials = sweep_in(outputs)
    assert {r["group"] for r in runs} == {folder.name}
    assert [(t["number"], t["state"]) for t in trials] == [
        ("0", "failed"),
        ("1", "completed"),
        ("2", "failed"),
        ("3", "completed"),
    ]
    assert study["counts"] == {"open": 0, "completed": 2, "pruned": 0, "failed": 2}


def test_one_bad_point_stops_a_sweep_before_it_starts(command: Command, outputs: Path) -> None:
    done = command(*TINY, "precision=fp32,fp16", "seed=1,2", f"outputs={outputs}")
    assert done.returncode == 2
    assert "2 of 4 points of the sweep are not sound" in done.stderr
    assert "precision=fp16" in done.stderr
    assert "use precision=bf16" in done.stderr
    assert not find_runs(outputs)
    for wrong, message in (
        (
            "hydra.sweeper.objectives=[{metric:test/accuracy,direction:maximize}]",
            "`test/accuracy` is found by the stage `evaluate`",
        ),
        ("hydra.sweeper.n_trails=3", "n_trails"),
        ("hydra.sweeper.constraints=[bytes]", "hydra.sweeper.constraints[0]: takes `METRIC <= NUMBER`"),
        ("hydra/sweeper/sampler=tpee", "tpe"),
        ("run_dir=here", "run_dir: is of one run"),
    ):
        done = command(*TINY, "hydra/sweeper=optuna", "optimizer.lr=interval(0,1)", wrong, f"outputs={outputs}")
        assert done.returncode == 2, done.stdout + done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_a_recipe_with_a_search_space_is_pruned_recorded_and_its_best_run_again_from_anywhere(
    command: Command, outputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipes" / "swept").mkdir(parents=True)
    (tmp_path / "recipes" / "swept" / "recipe.yaml").write_text(RECIPE.lstrip())
    done = command("-m", "recipe=swept", f"outputs={outputs}", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    folder, study, trials = sweep_in(outputs)
    assert study["status"] == "completed"
    assert len(trials) == 12
    pruned = [t for t in trials if t["state"] == "pruned"]
    assert pruned
    assert all(bool(t["optimizer.momentum"]) == (t["optimizer"] == "sgd") for t in trials)
    assert (trials[0]["optimizer"], float(trials[0]["optimizer.lr"])) == ("adamw", 0.01)
    assert RunRecord(Path(pruned[0]["run"]))["status"] == "pruned"
    assert "SuccessiveHalvingPruner" in pruned[0]["error"]
    assert pyarrow.parquet.read_table(folder / "trials.parquet").num_rows == 12
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 5
    links = re.findall(r'<a href="([^"]+)">', page)
    assert links
    assert all((folder / link).is_file() for link in links)
    best = max((t for t in trials if t["state"] == "completed"), key=lambda t: float(t["val/accuracy"]))
    assert study["best"][0]["number"] == int(best["number"])
    described = yaml.safe_load((folder / "recipe" / "best.yaml").read_text())
    assert described["optimizer"]["lr"] == float(best["optimizer.lr"])
    again = command("--config-dir", str(folder), "recipe=best", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    newest = find_runs(outputs)[0]
    assert newest.metrics["val/accuracy"] == pytest.approx(float(best["val/accuracy"]))


def test_trials_that_differ_after_training_share_it_and_the_exported_model_is_what_is_optimised(
    command: Command, outputs: Path
) -> None:
    done = command(
        "-m", "recipe=digits_search", "hydra/sweeper/sampler=brute_force", "hydra/sweeper/pruner=none",
        "stages=[prepare,train,evaluate,compress,export]", "trainer.max_epochs=2", "measure.seconds=0.03",
        "optimizer.lr=1e-3,3e-3", "optimizer=adamw", "model.widths=[8,16]",
        "hydra.sweeper.n_trials=6", "hydra.sweeper.enqueue=[]", "hydra.sweeper.constraints=['export/onnx/bytes <= 10000']", f"outputs={outputs}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    folder, study, trials = sweep_in(outputs)
    assert [t["state"] for t in trials] == ["completed"] * 6
    taken = [t for t in trials if t["taken_from"]]
    assert len(taken) == 4
    for trial in taken:
        other = trials[int(trial["taken_from"])]
        assert trial["optimizer.lr"] == other["optimizer.lr"]
        assert (trial["compress"], trial["compress.structured_pruning.ratio"]) != (
            other["compress"], other["compress.structured_pruning.ratio"]
        )  # fmt: skip
        record = RunRecord(Path(trial["run"]))
        assert record["from_run"] == other["run"]
        assert list(record["stages"]) == ["compress", "export"]
        assert record.metrics["test/accuracy"] == RunRecord(Path(other["run"])).metrics["test/accuracy"]
    sizes = {t["number"]: RunRecord(Path(t["run"])).metrics["export/onnx/bytes"] for t in trials}
    assert {str(b["number"]) for b in study["best"]} <= {n for n, size in sizes.items() if size <= 10_000}
    assert "Pareto" in (folder / "report.html").read_text()


def wait_for(outputs: Path, what: str, count: int, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while len(list(outputs.glob(what))) < count:
        assert time.monotonic() < end, sorted(map(str, outputs.glob("**/*.json")))
        time.sleep(0.1)


def test_a_sweep_whose_controller_is_killed_goes_on_with_the_same_command_and_loses_nothing(outputs: Path) -> None:
    slow = [
        "trainer.max_epochs=12",
        "trainer.validate_every_n_steps=5",
        "optimizer.lr=interval(0.001,0.01)",
        "model.widths=[8,16]",
    ]
    what = [
        *[t for t in TINY if "epochs" not in t and "widths" not in t],
        *slow,
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_jobs=2",
    ]
    line = [sys.executable, "run.py", *what, "hydra.sweeper.n_trials=6", f"outputs={outputs}"]
    line.append(line.pop(line.index("-m")))  # anywhere on the command line

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(line, cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    first = start()
    wait_for(outputs, "sweeps/*/trials/*/reports.jsonl", 2)
    first.kill()
    first.wait()
    second = start()
    wait_for(outputs, "sweeps/*/trials/*/result.json", 2)
    wait_for(outputs, "sweeps/*/trials/*/reports.jsonl", 4)
    os.kill(second.pid, signal.SIGINT)
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 75
    assert "going on" in said
    assert "the same command goes on" in said
    third = start()
    said, _ = third.communicate(timeout=240)
    assert third.returncode == 0, said
    folder, study, trials = sweep_in(outputs)
    assert [t["state"] for t in trials] == ["completed"] * 6
    for trial in trials:
        lines = (folder / "trials" / trial["number"] / "reports.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert sorted(set(steps)) == [*range(5, 228, 5), 228]
    assert len({t["run"] for t in trials}) == 6
    assert len(find_runs(outputs)) == 6
    assert study["counts"]["completed"] == 6
