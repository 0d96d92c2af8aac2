"""Injects faults into sweeps, and says what came of each.

    .venv/bin/python scripts/fault_sweep.py [--trial-kills 50] [--controller-kills 20] [--only ...]

Every sweep is `python run.py -m`: Optuna over twelve seeds (each tried once), two slots, real trainings, a validation
every few steps. What it finds must be what an undisturbed sweep found: each seed once, with the same metrics.

    kill -9 of trials             50 kills in 2 sweeps: each seed once, with the metrics of an undisturbed sweep
    kill -9 of the controller     12 kills of one sweep: as undisturbed
    kill -9 of the fork server    3 times: it is started again, as undisturbed
    a full disk                   one message, exit code 1; with room the same command goes on: as undisturbed
    two controllers               one killed on the way: 2 shared the trials, as undisturbed
    Ctrl-C                        summary, exit code 75, no process left; gone on: as undisturbed
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import psutil
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

HOME = Path(__file__).resolve().parent.parent
SEEDS = 12
WHAT = (
    "-m", "hydra/sweeper=optuna", "hydra/sweeper/sampler=brute_force", f"seed=range(0,{SEEDS})",
    "hydra.sweeper.n_jobs=2", f"hydra.sweeper.n_trials={SEEDS}", "hydra.sweeper.retries=1000", "stages=[prepare,train]",
    "compress=none", "trainer.threads=1", "trainer.max_epochs=8", "trainer.validate_every_n_steps=5",
    "model.widths=[8,16]",
)  # fmt: skip


class GotThrough(Exception):
    """A fault that did harm."""


def start(work: Path, *more: str, sweep: Path | None = None) -> subprocess.Popen[str]:
    """Start a sweep; the same folder again goes on with it."""
    places = (f"outputs={work}", f"hydra.sweep.dir={sweep or work / 'sweep'}")
    command = [sys.executable, "run.py", *WHAT, *places, *more]
    return subprocess.Popen(command, cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], expected: int = 0) -> str:
    """Wait for a sweep, and return what it printed."""
    output, _ = process.communicate(timeout=900)
    if process.returncode != expected:
        raise GotThrough(f"exit code {process.returncode} instead of {expected}: {output[-2500:]}")
    return output


def found(sweep: Path) -> dict[str, str]:
    """Return the metric of each seed, after making sure that each was counted once, everywhere."""
    with (sweep / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    seeds = sorted(int(r["seed"]) for r in rows if r["state"] == "completed")
    if seeds != list(range(SEEDS)) or len(rows) != SEEDS:
        raise GotThrough(f"the trials are {[(r['number'], r['seed'], r['state']) for r in rows]}")
    storage = JournalStorage(JournalFileBackend(str(sweep / "journal.log")))
    study = optuna.load_study(study_name=sweep.name, storage=storage)
    if sorted((t.params["seed"], t.state.name) for t in study.trials) != [(s, "COMPLETE") for s in range(SEEDS)]:
        raise GotThrough(f"the study has {[(t.number, t.params, t.state.name) for t in study.trials]}")
    if len({r["run"] for r in rows}) != SEEDS:
        raise GotThrough("two trials share a run")
    return {r["seed"]: r["val/accuracy"] for r in rows}


def undisturbed(work: Path, *more: str) -> dict[str, str]:
    """Return what a sweep finds that is left in peace."""
    finish(start(work, *more, sweep=work / "peace"))
    return found(work / "peace")


def require_same(sweep: Path, expected: dict[str, str]) -> None:
    """Raise unless a sweep found what an undisturbed one did."""
    if (seen := found(sweep)) != expected:
        raise GotThrough(f"other metrics: {seen} instead of {expected}")


def running(sweep: Path) -> Iterator[int]:
    """Yield the processes of trials that run."""
    for handle in sweep.glob("trials/*/handle.json"):
        if not (handle.parent / "result.json").exists():
            try:
                pid = json.loads(handle.read_text())["pid"]
            except (OSError, json.JSONDecodeError):
                continue
            if psutil.pid_exists(pid):
                yield pid


def kill_trials(count: int, work: Path) -> str:
    """kill -9 of random trials at random moments."""
    expected = undisturbed(work)
    killed = sweeps = 0
    while killed < count:
        sweep = work / f"sweep{sweeps}"
        sweeps += 1
        process = start(work, sweep=sweep)
        while process.poll() is None:
            time.sleep(random.uniform(0.2, 1.2))
            pids = list(running(sweep))
            if pids and killed < count:
                with_effect = psutil.Process(random.choice(pids))
                with_effect.kill()
                killed += 1
        finish(process)
        require_same(sweep, expected)
    return f"{killed} kills in {sweeps} sweeps: each seed once, with the metrics of an undisturbed sweep"


def kill_the_controller(count: int, work: Path) -> str:
    """kill -9 of the process that was started, again and again, in one sweep."""
    epochs = "trainer.max_epochs=40"
    expected = undisturbed(work, epochs)
    killed = 0
    while killed < count:
        process = start(work, epochs)
        time.sleep(random.uniform(1.5, 7.0) if killed % 4 else random.uniform(9.0, 14.0))
        if process.poll() is not None:
            break
        process.kill()
        process.communicate()
        killed += 1
    output = finish(start(work, epochs))
    require_same(work / "sweep", expected)
    return f"{killed} kills of one sweep{', which was over then' if 'going on' not in output else ''}: as undisturbed"


def kill_the_fork_server(_: int, work: Path) -> str:
    """kill -9 of the process from which trials are forked."""
    expected = undisturbed(work)
    process = start(work)
    for _ in range(3):
        time.sleep(random.uniform(8.0, 12.0))
        for child in psutil.Process(process.pid).children():
            if "forkserver" in " ".join(child.cmdline()):
                child.kill()
    finish(process)
    require_same(work / "sweep", expected)
    return "3 times: it is started again, as undisturbed"


def full_disk(_: int, work: Path) -> str:
    """Fill the disk on which the study, the trials and their checkpoints lie."""
    expected = undisturbed(work)
    disk = work / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)], check=True)
    try:
        process = start(work, sweep=disk / "sweep")
        while len(list(disk.glob("sweep/trials/*/result.json"))) < 3:
            if process.poll() is not None:
                raise GotThrough(f"it ended too early: {finish(process)}")
            time.sleep(0.1)
        with (disk / "filler").open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(b"\0" * 4096)
            except OSError:
                pass
        output = finish(process, 1)
        if "the disk is full" not in output or "Traceback" in output:
            raise GotThrough(f"the full disk is not said: {output[-2500:]}")
        (disk / "filler").unlink()
        finish(start(work, sweep=disk / "sweep"))
        require_same(disk / "sweep", expected)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return "one message, exit code 1; with room the same command goes on: as undisturbed"


def two_controllers(_: int, work: Path) -> str:
    """Two processes work on one sweep; one is killed on the way."""
    expected = undisturbed(work)
    one = start(work)
    time.sleep(8)
    other = start(work)
    time.sleep(14)
    one.kill()
    one.communicate()
    finish(other)
    require_same(work / "sweep", expected)
    with (work / "sweep" / "trials.csv").open() as file:
        shares = len({row["controller"] for row in csv.DictReader(file)})
    return f"one killed on the way: {shares} shared the trials, as undisturbed"


def interrupted(_: int, work: Path) -> str:
    """Ctrl-C once, twice, and then on to the end."""
    expected = undisturbed(work)
    process = start(work)
    time.sleep(12)
    process.send_signal(signal.SIGINT)
    output = finish(process, 75)
    if "the same command goes on" not in output or not (work / "sweep" / "report.html").exists():
        raise GotThrough(f"no summary: {output[-1500:]}")
    if left := list(running(work / "sweep")):
        raise GotThrough(f"trials still run: {left}")
    process = start(work)
    time.sleep(12)
    process.send_signal(signal.SIGINT)
    time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    finish(process, 75)
    time.sleep(0.5)
    if left := list(running(work / "sweep")):
        raise GotThrough(f"trials still run: {left}")
    finish(start(work))
    require_same(work / "sweep", expected)
    return "summary, exit code 75, no process left; gone on: as undisturbed"


FAULTS: dict[str, Callable[[int, Path], str]] = {
    "kill -9 of trials": kill_trials,
    "kill -9 of the controller": kill_the_controller,
    "kill -9 of the fork server": kill_the_fork_server,
    "a full disk": full_disk,
    "two controllers": two_controllers,
    "Ctrl-C": interrupted,
}


def main() -> int:
    """Inject every fault; returns the exit code."""
    parser = argparse.ArgumentParser(description="Inject faults into sweeps.")
    parser.add_argument("--trial-kills", type=int, default=50)
    parser.add_argument("--controller-kills", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=list(FAULTS), choices=list(FAULTS))
    arguments = parser.parse_args()
    random.seed(0)
    counts = {"kill -9 of trials": arguments.trial_kills, "kill -9 of the controller": arguments.controller_kills}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    failed = 0
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as work:
            try:
                outcome = FAULTS[name](counts.get(name, 0), Path(work))
            except (GotThrough, subprocess.SubprocessError) as error:
                outcome, failed = f"GOT THROUGH: {error}", failed + 1
        print(f"{name:30}{outcome}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
