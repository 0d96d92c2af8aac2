"""The loop over trials, with real processes that do little."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from omegaconf import DictConfig, OmegaConf

from framework.errors import UserError
from framework.launch.local import LocalBackend
from framework.sweep.controller import Controller, Rules
from framework.sweep.objectives import Objective, read_constraint
from framework.sweep.optuna_search import OptunaSearch
from framework.sweep.search import GridSearch, State
from framework.sweep.space import Space, read_space
from framework.sweep.storage import JOURNAL, mend_journal, open_storage
from framework.sweep.trials import SweepFolder, Trial
from tests.conftest import HOME

ENTRY = "tests.sweep.work:run"
X = Objective("x", False)
RULES = Rules()


class Plan:
    def __init__(self, config: Callable[[int, Mapping[str, Any]], dict[str, Any]]) -> None:
        self._config = config

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        return [f"{k}={v}" for k, v in values.items()]

    def config(self, number: int, values: Mapping[str, Any]) -> DictConfig:
        return OmegaConf.create({"stages": [], **self._config(number, values)})


class Quiet:
    def __init__(self) -> None:
        self.remarks: list[str] = []

    def began(self, trial: Trial) -> None: ...
    def ended(self, trial: Trial) -> None: ...
    def look(self) -> None: ...
    def remark(self, text: str) -> None:
        self.remarks.append(text)


def sweep(folder: Path, space: Space, config: Callable, slots: int = 2, rules: Rules = RULES, search: Any = None,
          objectives: Any = (X,), judge: Any = None, constraints: Any = ()) -> tuple[Controller, Quiet]:  # fmt: skip
    place, quiet = SweepFolder(folder), Quiet()
    backend = LocalBackend(slots, ENTRY, preload=("tests.sweep.work",))
    found = search or GridSearch(space, place.has)
    controller = Controller(place, found, backend, Plan(config), objectives, judge, rules, constraints)
    controller.run(quiet)
    return controller, quiet


def test_a_slot_that_falls_free_gets_the_next_trial_at_once(tmp_path: Path) -> None:
    space = read_space(["i=range(0,7)"], {}, {})
    controller, _ = sweep(tmp_path, space, lambda n, v: {"x": n, "seconds": 5.0 if n == 0 else 0.1})
    trials = controller.trials
    assert {t.state for t in trials.values()} == {State.completed}
    assert all(trials[n].slot == 1 and trials[n].ended <= trials[0].ended for n in range(1, 7))
    assert controller.best == [0]


def test_failures_are_told_apart_retried_where_that_helps_and_end_a_sweep_where_there_are_too_many(
    tmp_path: Path,
) -> None:
    hows = [{"how": "die", "times": 1}, {"how": "die"}, {"how": "raise"}, {"how": "mistake"}, {"seconds": 60}, {}]
    space = read_space(["i=range(0,6)"], {}, {})
    controller, _ = sweep(tmp_path, space, lambda n, v: {"x": n, **hows[n]}, rules=Rules(retries=1, trial_timeout_s=3))
    trials = controller.trials
    assert [t.state for t in trials.values()] == [State.completed, *[State.failed] * 4, State.completed]
    assert "killed by SIGKILL" in (trials[1].error or "")
    assert trials[2].error == "RuntimeError: out of luck\na word before the end\na word before the end"
    assert trials[3].error == "x: is wrong"
    assert trials[3].mistaken
    assert "took longer than 3 s" in (trials[4].error or "")
    attempts = [len((trials[n].folder / "began").read_text().split()) for n in range(6)]
    assert attempts == [2, 2, 2, 1, 1, 1]
    few, _ = sweep(tmp_path / "few", space, lambda n, v: {"how": "mistake"}, 1, Rules(max_failures=2))
    assert few.count(State.failed) == 2
    assert "2 trials failed (hydra.sweeper.max_failures)" in (few.enough or "")


def test_a_trial_that_wants_more_memory_than_it_may_fails_alone(tmp_path: Path) -> None:
    space, place = read_space(["i=1e8,3e9"], {}, {}), SweepFolder(tmp_path)
    backend = LocalBackend(2, ENTRY, ("tests.sweep.work",), memory_gb=1)
    plan = Plan(lambda n, v: {"how": "eat", "bytes": float(v["i"])})
    controller = Controller(place, GridSearch(space, place.has), backend, plan, [X], None, Rules(retries=0))
    controller.run(Quiet())
    assert [t.state for t in controller.trials.values()] == [State.completed, State.failed]
    assert (controller.trials[1].error or "").startswith("MemoryError")


def test_the_first_completed_trial_without_the_metric_ends_the_sweep(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trial 0: the run has no metric `xx`"):
        sweep(tmp_path, read_space(["i=1,2"], {}, {}), lambda n, v: {}, 1, objectives=[Objective("xx", True)])


def test_trials_that_do_badly_are_pruned_and_the_study_knows(tmp_path: Path) -> None:
    space = read_space(["x=range(0,8)"], {}, {})
    judge = Objective("val/x", False)
    aims = {
        "folder": tmp_path,
        "n_trials": 8,
        "pruner": {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 2},
    }

    def config(n: int, v: Mapping[str, Any]) -> dict[str, Any]:
        return {"values": [n + 3, n + 2, n + 1, n], "pause": 0.15, "x": n}

    search = OptunaSearch(space, [judge], prune_on=judge, **aims)  # type: ignore[arg-type]
    controller, _ = sweep(tmp_path, space, config, 1, objectives=[judge], judge=judge, search=search)
    states = [controller.trials[n].state for n in range(8)]
    assert states == [State.completed, State.completed, *[State.pruned] * 6]
    study = optuna.load_study(study_name=tmp_path.name, storage=open_storage(str(tmp_path / JOURNAL)))
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 2 + ["PRUNED"] * 6
    assert study.trials[0].intermediate_values == {1: 3, 2: 2, 3: 1, 4: 0}
    assert "MedianPruner" in study.trials[5].user_attrs["error"]


def test_with_several_objectives_one_metric_prunes_and_bounds_are_kept_in_mind(tmp_path: Path) -> None:
    space = read_space(["x=range(0,8)"], {}, {})
    judge, both = Objective("val/x", False), [Objective("x", False), Objective("val/x", True)]
    search = OptunaSearch(space, both, tmp_path, 8, {"_target_": "optuna.samplers.NSGAIISampler"}, prune_on=judge,
                          pruner={"_target_": "optuna.pruners.SuccessiveHalvingPruner", "reduction_factor": 2},
                          constrained=True)  # fmt: skip
    controller, _ = sweep(
        tmp_path,
        space,
        lambda n, v: {"values": [n, n, n, n], "pause": 0.15, "x": n},
        1,
        objectives=both,
        judge=judge,
        search=search,
        constraints=[read_constraint("x <= 3", "")],
    )
    assert controller.count(State.pruned) >= 3
    assert controller.trials[0].state is State.completed
    study = optuna.load_study(study_name=tmp_path.name, storage=open_storage(str(tmp_path / JOURNAL)))
    assert [t.state.name for t in study.trials] == [
        {"completed": "COMPLETE", "pruned": "PRUNED"}[controller.trials[n].state] for n in range(8)
    ]
    assert study.trials[0].constraints == {"x <= 3": -3.0}


def test_one_slot_gives_the_trials_of_plain_optuna(tmp_path: Path) -> None:
    def quality(x: float, y: float, kind: str) -> float:
        return (x - 0.3) ** 2 + (y - 2) ** 2 + (kind == "b")

    space = read_space(["a=interval(0,1)", "b=tag(log,interval(0.1,10))", "kind=a,b"], {}, {})
    search = OptunaSearch(space, [X], tmp_path, 25, seed=3)
    controller, _ = sweep(tmp_path, space, lambda n, v: {"x": quality(v["a"], v["b"], v["kind"])}, 1, search=search)
    plain = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=3))
    plain.optimize(
        lambda t: quality(
            t.suggest_float("a", 0, 1),
            t.suggest_float("b", 0.1, 10, log=True),
            t.suggest_categorical("kind", ["a", "b"]),
        ),
        n_trials=25,
    )
    assert [dict(controller.trials[n].values) for n in range(25)] == [t.params for t in plain.trials]


def test_known_points_come_first_and_earlier_studies_are_learnt_from(tmp_path: Path) -> None:
    space = read_space(["a=interval(0,1)", "kind=a,b"], {}, {})
    first = OptunaSearch(space, [X], tmp_path / "first", 5)
    sweep(tmp_path / "first", space, lambda n, v: {"x": v["a"]}, search=first)
    narrower = read_space(["a=interval(0,1)", "kind=a,c"], {}, {})
    second = OptunaSearch(narrower, [X], tmp_path / "second", 3)
    second.enqueue(narrower.parse({"a": 0.5, "kind": "c"}, ""))
    kinds = [t.params["kind"] for t in first._study.trials]
    assert second.import_study(str(tmp_path / "first"), None) == (kinds.count("a"), kinds.count("b"))
    assert second.import_study(str(tmp_path / "first"), None)[0] == 0  # not twice
    controller, _ = sweep(tmp_path / "second", narrower, lambda n, v: {"x": v["a"]}, 1, search=second)
    assert len(controller.trials) == 3
    assert {"a": 0.5, "kind": "c"} in [dict(t.values) for t in controller.trials.values()]


def test_a_sweep_that_brings_nothing_better_ends(tmp_path: Path) -> None:
    space = read_space(["i=range(0,50)"], {}, {})
    controller, _ = sweep(tmp_path, space, lambda n, v: {"x": max(0, 3 - n)}, 1, Rules(patience=4))
    assert len(controller.trials) == 8
    assert controller.enough == "4 trials brought nothing better"
    budget, _ = sweep(tmp_path / "b", space, lambda n, v: {"seconds": 0.4}, 1, Rules(time_budget_s=1))
    assert 2 <= len(budget.trials) <= 4


CONTROLLER = """
import sys
from pathlib import Path
sys.path.insert(0, {home!r})
from tests.sweep.test_controller import *
folder = Path({folder!r})
space = read_space(["a=interval(0,1)"], {{}}, {{}})
mend_journal(folder / JOURNAL)
search = OptunaSearch(space, [X], folder, 30)
sweep(folder, space, lambda n, v: {{"x": v["a"], "seconds": 0.2}}, search=search)
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    program = CONTROLLER.format(home=str(HOME), folder=str(folder))
    return subprocess.Popen([sys.executable, "-c", program], cwd=HOME)


def counted_once(folder: Path, expected: int) -> None:
    study = optuna.load_study(study_name=folder.name, storage=open_storage(str(folder / JOURNAL)))
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * expected
    place = SweepFolder(folder)
    assert place.numbers() == list(range(expected))
    for trial in study.trials:
        result = place.load(trial.number).the_job().result()
        assert result is not None
        assert result.metrics["x"] == trial.value == trial.params["a"]


@pytest.mark.integration
def test_a_controller_that_is_killed_again_and_again_loses_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    for pause in (1.3, 1.6, 1.9, 2.2):
        process = start(folder)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(folder).wait(120) == 0
    counted_once(folder, 30)


@pytest.mark.integration
def test_two_controllers_share_a_study(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    both = [start(folder)]
    time.sleep(2)
    both.append(start(folder))
    assert [p.wait(120) for p in both] == [0, 0]
    counted_once(folder, 30)
    place = SweepFolder(folder)
    assert len({place.load(n).controller for n in place.numbers()}) == 2


def test_a_half_written_line_is_cut_off_the_journal(tmp_path: Path) -> None:
    space = read_space(["a=interval(0,1)"], {}, {})
    sweep(tmp_path, space, lambda n, v: {"x": v["a"]}, search=OptunaSearch(space, [X], tmp_path, 2))
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    assert mend_journal(tmp_path / JOURNAL)
    assert not mend_journal(tmp_path / JOURNAL)
    controller, _ = sweep(tmp_path, space, lambda n, v: {"x": v["a"]}, search=OptunaSearch(space, [X], tmp_path, 4))
    assert controller.count(State.completed) == 4


def test_a_storage_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    space = read_space(["a=interval(0,1)"], {}, {})
    for url, message in (("sqlite:////nowhere/at/all.db", "cannot be opened"), ("mysql+nope://x", "cannot be opened")):
        with pytest.raises(UserError, match="storage") as refused:
            OptunaSearch(space, [X], tmp_path, 2, storage=url)
        assert message in str(refused.value)
    OptunaSearch(space, [X], tmp_path, 2, storage=f"sqlite:///{tmp_path}/s.db", study_name="s")
    with pytest.raises(UserError, match="the study `s` has other ones"):
        OptunaSearch(space, [Objective("x", True)], tmp_path, 2, storage=f"sqlite:///{tmp_path}/s.db", study_name="s")


def test_samplers_that_know_all_points_end_the_sweep(tmp_path: Path) -> None:
    space = read_space(["a=1,2,3", "b=x,y"], {}, {})
    for name in ("GridSampler", "BruteForceSampler"):
        search = OptunaSearch(space, [X], tmp_path / name, None, {"_target_": f"optuna.samplers.{name}"})
        controller, _ = sweep(tmp_path / name, space, lambda n, v: {"x": n}, 1, search=search)
        assert len({tuple(t.values.items()) for t in controller.trials.values()}) == 6
        assert len(controller.trials) == 6


@pytest.mark.integration
def test_only_this_process_is_stopped_by_a_signal_and_trials_go_on_later(tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    process = start(folder)
    time.sleep(2.5)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(30) != 0
    place = SweepFolder(folder)
    results = [place.load(n).the_job().result() for n in place.numbers()]
    assert all(r is not None for r in results)
    assert start(folder).wait(120) == 0
    counted_once(folder, 30)
