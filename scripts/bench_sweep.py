"""What a sweep costs beside the trials themselves: makespan, overhead, pruning, samplers, many trials.

    .venv/bin/python scripts/bench_sweep.py [--only makespan overhead pruning samplers many]

*Makespan*: 200 trials whose durations are lognormal (sigma 1, median 2 s), 8 slots; each trial's config is composed and
checked as always, and then slept. Greedy list scheduling of the same durations in the same order is the limit; a
barrier after every 8 is computed, too. Peers are in an environment of their own, `.venv-peers-sweep`, made on first
use. *Overhead*: seven tiny trainings in one slot, and as many fresh `python run.py`; from the start to the first line
of the model's code, and from a trial's end to the next one's start. *Pruning*: from the first trial's start until one
of the recipe `digits`, 20 epochs, is completed with a validation accuracy of 0.98, over learning rate, weight decay
(both over seven decades), dropout, optimizer and batch size; two slots, five seeds, with and without ASHA; and how long
40 trials take. *Samplers*:
TPE on Branin and Hartmann-6, 100 trials, ten seeds, beside Optuna's own loop. *Many*: 10,000 trials of nothing (random
points, one slot).

Measured on two cores (a virtual machine), Python 3.11, optuna 5.0.0; peers: hydra-optuna-sweeper 1.3 with optuna 2.10,
Ray 2.60:

    makespan of 200 trials in 8 slots            s
      greedy list scheduling, the limit         82.8
      a barrier after every 8, computed        224.2   2.71x
      ours                                      85.5   1.03x
      optuna_threads                            82.9   1.00x
      ray_tune                                 503.9   6.08x
      hydra_optuna_sweeper                     238.5   2.88x

    overhead of a trial, median                    s
      start to the first line of the model's code   0.13   (the first trial of a sweep: 9.9)
      end to the next one's start                   0.06
      together                                      0.19
      a fresh `python run.py` to the same line     10.46   55x

    digits: until a trial is completed with 0.98, s     seed 0  seed 1  seed 2  seed 3  seed 4  median
      without pruning                                    6.6     5.8    12.8     5.9    29.3     6.6
      with ASHA                                          5.3     5.6    10.3     6.4    16.3     6.4
      ratio of the medians                              0.98

    best of 100 trials, ten seeds            lowest   median  highest
      Branin       Optuna's own loop        0.4051   0.4164   0.4574
      Branin       ours, one slot           0.4051   0.4164   0.4574   the same trials for 10 of 10 seeds
      Branin       ours, four slots         0.3981   0.4215   0.5394
      Hartmann-6   Optuna's own loop       -3.2754  -3.2068  -2.9700
      Hartmann-6   ours, one slot          -3.2754  -3.2068  -2.9700   the same trials for 10 of 10 seeds
      Hartmann-6   ours, four slots        -3.2729  -3.1686  -3.0110

    10,000 trials of nothing
      ms a trial, by thousands after the first: 25 25 28 29 30 35 37 38 43
      memory after 1,000: 64 MB, at the end: 103 MB (4.2 kB a trial)

The last was measured before asking and telling stopped to look at all trials again; it was not measured since.
Three of five seeds reach 0.98 with their first or second trial, before which there is nothing to prune.

Optuna's threads share one process, so that a trial that dies takes the sweep with it. Ray starts a process for each
trial, which is what two cores spend the time on.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

from framework.config.plugins import CONF, register  # noqa: E402
from framework.launch.jobs import Job, Result, Status  # noqa: E402
from framework.launch.local import LocalBackend  # noqa: E402
from framework.sweep.controller import Controller  # noqa: E402
from framework.sweep.objectives import Objective  # noqa: E402
from framework.sweep.optuna_search import OptunaSearch  # noqa: E402
from framework.sweep.plan import ComposedPlan  # noqa: E402
from framework.sweep.search import GridSearch, State  # noqa: E402
from framework.sweep.space import read_space  # noqa: E402
from framework.sweep.sweepers import register_sweepers  # noqa: E402
from framework.sweep.trials import SweepFolder, Trial  # noqa: E402

PEERS = HOME / ".venv-peers-sweep"
TRIALS, SLOTS = 200, 8
Y = Objective("y", False)


def nap(folder: Path) -> int:
    """A trial: sleep as long as the config says, and be done."""
    job = Job(folder)
    with job.lock():
        began, config = time.time(), job.config()
        time.sleep(config.get("nap", 0.0))
        result = Result(job.attempt, Status.completed, 0, None, None, {"y": config.get("y", 0.0)}, began, time.time())
        job.write_result(result)
    return 0


class Quiet:
    """Watches, and says nothing."""

    def began(self, trial: Trial) -> None: ...

    def ended(self, trial: Trial) -> None: ...

    def look(self) -> None: ...

    def remark(self, text: str) -> None: ...


class Made:
    """A plan that makes configs by a function instead of composing them."""

    def __init__(self, make: Callable[[int, Mapping[str, Any]], dict[str, Any]]) -> None:
        self._make = make

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        return [f"{k}={v}" for k, v in values.items()]

    def config(self, number: int, values: Mapping[str, Any]) -> DictConfig:
        return OmegaConf.create({"stages": [], **self._make(number, values)})


class Napping(ComposedPlan):
    """Composes and checks as always; the trial then sleeps."""

    durations: list[float]

    def config(self, number: int, values: Mapping[str, Any]) -> DictConfig:
        config = super().config(number, values)
        return OmegaConf.create({**config, "stages": [], "nap": self.durations[number]})


def spread(spans: list[tuple[float, float]]) -> float:
    """Return the seconds from the first start to the last end."""
    return max(e for _, e in spans) - min(b for b, _ in spans)


def makespan(folder: Path) -> None:
    """Print how long sleeping trials take together, beside limits and peers."""
    random.seed(0)
    durations = [2.0 * random.lognormvariate(0, 1) for _ in range(TRIALS)]
    free = [0.0] * SLOTS
    for seconds in durations:
        heapq.heapreplace(free, free[0] + seconds)
    limit = max(free)
    barrier = sum(max(durations[i : i + SLOTS]) for i in range(0, TRIALS, SLOTS))
    print(f"makespan of {TRIALS} trials in {SLOTS} slots            s")
    print(f"  greedy list scheduling, the limit      {limit:7.1f}")
    print(f"  a barrier after every {SLOTS}, computed     {barrier:7.1f}   {barrier / limit:.2f}x")
    register()
    register_sweepers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        typed = [f"seed=range(0,{TRIALS})", f"outputs={folder}"]
        master = loader.load_configuration("config", overrides=typed, run_mode=RunMode.MULTIRUN)
        space, place = read_space(typed, {}, {}), SweepFolder(folder / "ours")
        plan = Napping(loader, master, space, place.path)
        plan.durations = durations
        backend = LocalBackend(SLOTS, "scripts.bench_sweep:nap", preload=("scripts.bench_sweep",))
        controller = Controller(place, GridSearch(space, place.has), backend, plan, [Y])
        controller.run(Quiet())
    assert controller.count(State.completed) == TRIALS
    ours = spread([(t.started, t.ended) for t in controller.trials.values()])
    print(f"  ours                                   {ours:7.1f}   {ours / limit:.2f}x")
    (folder / "durations.json").write_text(json.dumps(durations))
    make_peers()
    for contender in ("optuna_threads", "ray_tune", "hydra_optuna_sweeper"):
        spans = folder / f"{contender}.jsonl"
        command = [PEERS / "bin/python", HOME / "scripts/sweep_contenders.py", contender, folder / "durations.json"]
        with (folder / "log.txt").open("a") as log:
            subprocess.run([*map(str, command), str(spans)], check=True, cwd=folder, stdout=log, stderr=log)
        found = [json.loads(line) for line in spans.read_text().splitlines()]
        assert len(found) == TRIALS
        took = spread([(b, e) for _, b, e in found])
        print(f"  {contender:<38} {took:7.1f}   {took / limit:.2f}x")


def make_peers() -> None:
    """Make the environment of the peers, once."""
    if not PEERS.exists():
        uv = str(HOME / ".venv/bin/uv")
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(PEERS)], check=True)
        wanted = ["hydra-optuna-sweeper", "hydra-joblib-launcher", "ray[tune]"]
        subprocess.run([uv, "pip", "install", "-q", "--python", str(PEERS / "bin/python"), *wanted], check=True)


TINY = (
    "stages=[prepare,train]", "trainer.max_epochs=1", "compress=none", "trainer.threads=1", "model=mlp",
    "model._target_=scripts.stopwatch.timed_mlp", "model.hidden=[16]",
)  # fmt: skip


def overhead(folder: Path) -> None:
    """Print what comes before and after a trial's own work."""

    def run(*arguments: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(HOME), "STOPWATCH": str(folder / "watch.txt")}
        command = [sys.executable, "run.py", *arguments, *TINY, f"outputs={folder}"]
        subprocess.run(command, check=True, cwd=HOME, env=environment, stdout=subprocess.DEVNULL)

    def seen() -> list[float]:
        found = [float(line) for line in (folder / "watch.txt").read_text().split()]
        (folder / "watch.txt").unlink()
        return found

    run()  # prepares the data
    seen()
    fresh = []
    for seed in range(7):
        began = time.time()
        run(f"seed={seed}")
        fresh.append(seen()[0] - began)
    run("-m", "seed=range(10,18)")
    (place,) = (folder / "sweeps").iterdir()
    trials = [SweepFolder(place).load(n) for n in range(8)]
    started = [t.the_job().notes["started"] for t in trials]
    to_code = [first - s for first, s in zip(seen(), started, strict=True)]
    to_next = [s - t.ended for s, t in zip(started[1:], trials, strict=False)]
    a, b, c = (statistics.median(x) for x in (to_code[1:], to_next, fresh))
    print("overhead of a trial, median                    s")
    print(f"  start to the first line of the model's code {a:6.2f}   (the first trial of a sweep: {to_code[0]:.1f})")
    print(f"  end to the next one's start                 {b:6.2f}")
    print(f"  together                                    {a + b:6.2f}")
    print(f"  a fresh `python run.py` to the same line    {c:6.2f}   {c / (a + b):.0f}x")


SPACE = (
    "optimizer.lr=tag(log,interval(1e-6,10))", "optimizer=adamw,sgd", "trainer.global_batch_size=16,64,256",
    "optimizer.weight_decay=tag(log,interval(1e-5,10))", "model.dropout=interval(0,0.95)",
)  # fmt: skip


def pruning(folder: Path) -> None:
    """Print how long it takes to find a good model, with and without pruning."""
    took: dict[str, list[float]] = {"none": [], "asha": []}
    what = ("stages=[prepare,train]", "compress=none", "trainer.max_epochs=20", "hydra/sweeper=optuna", *SPACE)
    prepare = [sys.executable, "run.py", "stages=[prepare]", f"outputs={folder}"]
    subprocess.run(prepare, check=True, cwd=HOME, stdout=subprocess.DEVNULL)
    for seed in range(5):
        for pruner, found in took.items():
            place = folder / f"{pruner}{seed}"
            command = [
                sys.executable, "run.py", "-m", *what, f"hydra/sweeper/pruner={pruner}", f"hydra.sweeper.seed={seed}",
                f"outputs={folder}", f"hydra.sweep.dir={place}", "hydra.sweeper.n_trials=200", "hydra.sweeper.n_jobs=2",
            ]  # fmt: skip
            process = subprocess.Popen(command, cwd=HOME, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None:
                time.sleep(0.1)
                good = _first_good(place)
                if good is not None:
                    found.append(good)
                    process.terminate()
                    process.wait()
            if len(found) == seed:
                raise RuntimeError(f"{place}: no trial reached 0.98")
    print("digits: until a trial is completed with 0.98, s   " + "".join(f"  seed {s}" for s in range(5)) + "  median")
    for pruner, found in took.items():
        cells = "".join(f"{x:8.1f}" for x in found)
        print(f"  {'with ASHA' if pruner == 'asha' else 'without pruning':<46}{cells}{statistics.median(found):8.1f}")
    ratio = statistics.median(took["asha"]) / statistics.median(took["none"])
    print(f"  ratio of the medians                          {ratio:8.2f}")
    print("digits: 40 trials                                    s  best val/accuracy")
    for pruner in took:
        place = folder / f"whole-{pruner}"
        command = [
            sys.executable, "run.py", "-m", *what, f"hydra/sweeper/pruner={pruner}", f"outputs={folder}",
            f"hydra.sweep.dir={place}", "hydra.sweeper.n_trials=40", "hydra.sweeper.n_jobs=2",
        ]  # fmt: skip
        subprocess.run(command, cwd=HOME, check=True, stdout=subprocess.DEVNULL)
        sweep = SweepFolder(place)
        trials = [sweep.load(number) for number in sweep.numbers()]
        best = json.loads((place / "study.json").read_text())["best"][0]["objectives"][0]
        seconds = spread([(t.started, t.ended) for t in trials])
        print(f"  {'with ASHA' if pruner == 'asha' else 'without pruning':<44}{seconds:8.1f} {best:8.4f}")


def _first_good(place: Path) -> float | None:
    starts, ends = [], []
    for job in (place / "trials").glob("*/job.json") if place.exists() else []:
        try:
            result = json.loads((job.parent / "result.json").read_text())
        except (OSError, json.JSONDecodeError):
            continue
        starts.append(result["started"])
        if result["status"] == "completed" and result["metrics"]["val/accuracy"] >= 0.98:
            ends.append(result["ended"])
    return min(ends) - min(starts) if ends else None


def branin(v: Mapping[str, float]) -> float:
    """Return Branin's function of `a` and `b`; its minimum is 0.3979."""
    x, y = v["a"], v["b"]
    bent = y - 5.1 * x * x / (4 * math.pi**2) + 5 * x / math.pi - 6
    return bent * bent + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


def hartmann(v: Mapping[str, float]) -> float:
    """Return Hartmann's function of `x0` to `x5`; its minimum is -3.3224."""
    alpha = (1.0, 1.2, 3.0, 3.2)
    a = ((10, 3, 17, 3.5, 1.7, 8), (0.05, 10, 17, 0.1, 8, 14), (3, 3.5, 1.7, 10, 17, 8), (17, 8, 0.05, 10, 0.1, 14))
    p = (
        (1312, 1696, 5569, 124, 8283, 5886), (2329, 4135, 8307, 3736, 1004, 9991),
        (2348, 1451, 3522, 2883, 3047, 6650), (4047, 8828, 8732, 5743, 1091, 381),
    )  # fmt: skip
    x = [v[f"x{i}"] for i in range(6)]
    total = 0.0
    for i in range(4):
        total -= alpha[i] * math.exp(-sum(a[i][j] * (x[j] - p[i][j] / 10_000) ** 2 for j in range(6)))
    return total


FUNCTIONS: dict[str, tuple[Callable[[Mapping[str, float]], float], list[str]]] = {
    "Branin": (branin, ["a=interval(-5,10)", "b=interval(0,15)"]),
    "Hartmann-6": (hartmann, [f"x{i}=interval(0,1)" for i in range(6)]),
}


def samplers(folder: Path) -> None:
    """Print what TPE finds through the sweeper, and by itself."""
    print("best of 100 trials, ten seeds            lowest   median  highest")
    for name, (function, typed) in FUNCTIONS.items():
        space = read_space(typed, {}, {})
        best: dict[str, list[float]] = {"Optuna's own loop": [], "ours, one slot": [], "ours, four slots": []}
        same = 0
        for seed in range(10):
            study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
            study.optimize(
                lambda t, typed=space.dimensions, f=function: f(  # type: ignore[misc]
                    {d.name: t.suggest_float(d.name, d.domain.low, d.domain.high) for d in typed}
                ),
                n_trials=100,
            )
            best["Optuna's own loop"].append(study.best_value)
            for slots, key in ((1, "ours, one slot"), (4, "ours, four slots")):
                place = SweepFolder(folder / f"{name}{seed}{slots}")
                backend = LocalBackend(slots, "scripts.bench_sweep:nap", preload=("scripts.bench_sweep",))
                search = OptunaSearch(space, [Y], place.path, 100, seed=seed)
                controller = Controller(place, search, backend, Made(lambda n, v, f=function: {"y": f(v)}), [Y])  # type: ignore[misc]
                controller.run(Quiet())
                best[key].append(min(t.objectives[0] for t in controller.trials.values()))
                if slots == 1:
                    same += [dict(controller.trials[n].values) for n in range(100)] == [t.params for t in study.trials]
        for key, found in best.items():
            note = f"   the same trials for {same} of 10 seeds" if key == "ours, one slot" else ""
            ends = f"{min(found):9.4f}{statistics.median(found):9.4f}{max(found):9.4f}"
            print(f"  {name:<12} {key:<22}{ends}{note}")


def many(folder: Path, count: int = 10_000) -> None:
    """Print time and memory of very many trials."""
    space = read_space(["a=interval(0,1)", "b=x,y,z"], {}, {})
    place = SweepFolder(folder / "many")
    backend = LocalBackend(1, "scripts.bench_sweep:nap", preload=("scripts.bench_sweep",))
    search = OptunaSearch(space, [Y], place.path, count, {"_target_": "optuna.samplers.RandomSampler"})
    marks: list[tuple[float, float]] = []

    class Marking(Quiet):
        def ended(self, trial: Trial) -> None:
            if (trial.number + 1) % 1000 == 0 or trial.number == 99:
                marks.append((time.time(), _memory()))

    controller = Controller(place, search, backend, Made(lambda n, v: {"y": v["a"]}), [Y])
    controller.run(Marking())
    assert controller.count(State.completed) == count
    times = [b[0] - a[0] for a, b in pairwise(marks[1:])]
    print(f"{count:,} trials of nothing")
    print(f"  ms a trial, by thousands after the first: {' '.join(f'{t:.0f}' for t in times)}")
    growth = (marks[-1][1] - marks[1][1]) / (count - 1000) * 1000
    print(f"  memory after 1,000: {marks[1][1]:.0f} MB, at the end: {marks[-1][1]:.0f} MB ({growth:.1f} kB a trial)")
    shutil.rmtree(place.path)


def _memory() -> float:
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


@contextmanager
def somewhere() -> Iterator[Path]:
    """Yield a folder that vanishes."""
    with tempfile.TemporaryDirectory(prefix="bench-sweep-") as folder:
        yield Path(folder)


def main() -> None:
    """Run the parts that were asked for."""
    parts = {f.__name__: f for f in (makespan, overhead, pruning, samplers, many)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for name in parser.parse_args().only:
        with somewhere() as folder:
            parts[name](folder)
        print(flush=True)


if __name__ == "__main__":
    main()
