"""Experiments and sweeps on a real SLURM: what a user types, and what a cluster does to jobs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from framework.launch.backend import Phase
from framework.launch.jobs import Job
from framework.launch.remote import Remote
from framework.launch.slurm import Resources, SlurmBackend
from framework.record.run import RunRecord
from tests.conftest import HOME, Command
from tests.integration.conftest import LONG, TRAINING, need, running_slurm

pytestmark = pytest.mark.integration

SMALL = (
    "recipe=digits", *TRAINING,
    "hydra/launcher=slurm", "hydra.launcher.backoff_s=1", "hydra.launcher.time=20m",
)  # fmt: skip
PRUNING = ("hydra/sweeper=optuna", "hydra/sweeper/pruner=median", "hydra.sweeper.pruner.n_startup_trials=1")
TWO_NODES = ("strategy=ddp", "strategy.devices=1", "hydra.launcher.nodes=2")
LOOPBACK = "hydra.launcher.setup=['export GLOO_SOCKET_IFNAME=lo']"


def eventually(what: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


def queue(*options: str) -> list[str]:
    return subprocess.run(["squeue", "-h", *options], capture_output=True, text=True, check=True).stdout.split()


def newest(outputs: Path) -> Path:
    return max((p.parent.parent for p in outputs.glob("digits/*/job/job.json")), key=lambda p: p.stat().st_mtime)


def last_step(run: Path) -> int:
    """Return the step of the newest checkpoint."""
    return max((int(p.name.split("_")[1].partition(".")[0]) for p in run.glob("checkpoints/step_*")), default=0)


def processes(pattern: str, **environment: str) -> list[int]:
    """Return the processes whose command matches, and that have such an environment."""
    found = []
    for pid in map(int, subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True).stdout.split()):
        with suppress(OSError):
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if all(f"{key}={value}".encode() in variables for key, value in environment.items()):
                found.append(pid)
    return found


@contextmanager
def submitted(*overrides: str) -> Iterator[subprocess.Popen]:
    """Run the command line in a process of its own, which is killed at the end if it still runs."""
    process = subprocess.Popen([sys.executable, str(HOME / "run.py"), *overrides], start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_one_override_sends_an_experiment_to_slurm_and_what_is_wrong_is_said_before(
    command: Command, slurm: Path, outputs: Path
) -> None:
    common = [*SMALL, f"outputs={outputs}", "trainer.max_epochs=1"]
    refused = command(*common, "hydra.launcher.partition=gpux")
    assert refused.returncode == 2
    assert "gpux" in refused.stderr
    assert "there are the partitions main, low, high" in refused.stderr
    assert command(*common, "hydra.launcher.time=soon").returncode == 2
    assert "problem" in command(*common, "optimizer.lr=x").stderr
    assert queue() == []
    dry = command(*common, "dry_run=true")
    assert dry.returncode == 0, dry.stderr
    script = next(Path(line.split()[1]) for line in dry.stdout.splitlines() if line.startswith("script"))
    assert "1 job x 1 node x 0.333 h = 0.333 node hours" in dry.stdout
    assert queue() == []
    done = command(*common)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test/accuracy" in done.stdout  # its output is followed
    run = newest(outputs)
    assert RunRecord(run)["status"] == "completed"
    subprocess.run(["sbatch", "--wait", str(script)], check=True, capture_output=True)  # by hand, it does the same
    by_hand = RunRecord(script.parent.parent)
    assert by_hand.metrics["test/loss"] == RunRecord(run).metrics["test/loss"]
    assert by_hand["environment"]["git"] == RunRecord(run)["environment"]["git"]
    shown = command("jobs", "ls", str(outputs), module=True).stdout
    assert shown.count("completed") == 2
    assert "completed" in command("jobs", "status", str(run), module=True).stdout
    assert "test/accuracy" in command("jobs", "logs", str(run), module=True).stdout
    assert command("jobs", "collect", str(run), module=True).returncode == 0


def test_a_job_outlives_its_submitter_and_is_cancelled_and_sent_again_from_elsewhere(
    command: Command, slurm: Path, outputs: Path
) -> None:
    with submitted(*SMALL, *LONG, "trainer.max_epochs=15", f"outputs={outputs}") as submitter:
        eventually(lambda: list(outputs.glob("digits/*/checkpoints/step_*")))
        run = newest(outputs)
        os.killpg(submitter.pid, signal.SIGKILL)
    assert "running" in command("jobs", "status", str(run), module=True).stdout
    assert command("jobs", "cancel", str(run), module=True).returncode == 0
    eventually(lambda: not queue())
    result = Job(run / "job").result()
    assert result is not None
    assert (str(result.status), result.error) == ("cancelled", "cancelled by `jobs cancel`")
    code = RunRecord(run)["environment"]["git"]
    again = command("jobs", "resubmit", str(run), module=True, cwd=outputs)  # the code is that of the first submission
    assert again.returncode == 0, again.stderr
    followed = command("jobs", "logs", "-f", str(run), module=True)
    assert followed.returncode == 0, followed.stderr
    assert RunRecord(run)["status"] == "completed"
    assert RunRecord(run)["environment"]["git"] == code
    assert "is completed" in command("jobs", "resubmit", str(run), module=True).stdout


def test_what_a_job_gets_wrong_ends_it_and_what_its_node_gets_wrong_is_tried_again(
    command: Command, slurm: Path, outputs: Path, tmp_path: Path
) -> None:
    common = [*SMALL, f"outputs={outputs}", "trainer.max_epochs=1"]
    mistaken = command(*common, "trainer.start_from=/nowhere", "check=false")
    assert mistaken.returncode == 2, mistaken.stdout + mistaken.stderr
    assert not (newest(outputs) / "job" / "failures").exists()
    flag = tmp_path / "broken"
    broken_once = f"hydra.launcher.setup=['[ -e {flag} ] || export PYTHONHOME=/nowhere; touch {flag}']"
    done = command(*common, broken_once, "hydra.launcher.container='unshare --uts'")  # which is half a container
    assert done.returncode == 0, done.stdout + done.stderr
    assert (newest(outputs) / "job" / "failures").read_text() == "1\n"


def disturbed(run: Path, disturb: Callable[[], object]) -> None:
    """Disturb a training that goes on by then, and wait until it goes on again."""
    before, steps = Job(run / "job").current_start(), last_step(run)
    eventually(lambda: last_step(run) > steps)
    disturb()
    eventually(lambda: Job(run / "job").current_start() != before)
    steps = last_step(run)
    eventually(lambda: last_step(run) > steps)


def test_two_nodes_go_on_exactly_whatever_happens_to_them(
    undisturbed: dict[str, float], slurm: Path, outputs: Path
) -> None:
    with submitted(
        *SMALL, *LONG, *TWO_NODES, LOOPBACK, f"outputs={outputs}", "hydra.launcher.partition=low",
        "hydra.launcher.grace_s=58",
    ) as waiting:  # fmt: skip
        eventually(lambda: list(outputs.glob("digits/*/checkpoints/step_*")))
        run = newest(outputs)
        number = json.loads((run / "job" / "handle.json").read_text())["id"]
        failures = run / "job" / "failures"

        def requeue() -> None:
            subprocess.run(["scontrol", "requeue", number], check=True)

        def preempt() -> None:
            job = ["sbatch", "--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1"]
            subprocess.run(job, check=True, capture_output=True)

        def kill_a_rank() -> None:
            os.kill(processes(f"framework.training.rank {run}", SLURM_NODEID="1")[0], signal.SIGKILL)

        def lose_a_node() -> None:
            node = queue("-j", number, "-o", "%B")[0]
            os.kill(int((slurm / "run" / f"slurmd.{node}.pid").read_text()), signal.SIGKILL)
            for pid in processes(f"(framework.launch.worker|framework.training.rank) {run}", SLURMD_NODENAME=node):
                os.kill(pid, signal.SIGKILL)
            eventually(lambda: number not in queue("-t", "RUNNING", "-o", "%A"))
            subprocess.run([str(HOME / "scripts" / "slurm_local"), "up", str(slurm), "4"], check=True)

        def come_to_the_time_limit() -> None:
            limit = ["scontrol", "update", f"JobId={number}"]
            subprocess.run([*limit, "TimeLimit=1"], check=True)
            eventually(lambda: number not in queue("-t", "RUNNING", "-o", "%A"))
            subprocess.run([*limit, "TimeLimit=20"], check=True)

        disturbed(run, requeue)
        disturbed(run, preempt)
        disturbed(run, come_to_the_time_limit)
        assert not failures.exists()  # of these, none is counted
        disturbed(run, kill_a_rank)
        assert failures.read_text() == "1\n"
        assert "was killed" in (run / "job" / "log.txt").read_text()  # the first cause, not the network errors after it
        disturbed(run, lose_a_node)
        assert waiting.wait(240) == 0
    metrics = RunRecord(run).metrics
    for name in ("val/loss", "test/loss", "test/accuracy"):
        assert metrics[name] == undisturbed[name], name


def test_a_sweep_of_thirty_prunes_and_survives_a_node_and_its_controller(
    command: Command, slurm: Path, outputs: Path
) -> None:
    sweep = [
        "-m", *SMALL, f"outputs={outputs}", "stages=[prepare,train]", *PRUNING, "hydra.sweeper.n_trials=30",
        "hydra.sweeper.n_jobs=4", "trainer.max_epochs=5", "optimizer.lr=interval(1e-7, 1e-1)",
    ]  # fmt: skip

    def ended() -> int:
        return len(list(outputs.glob("sweeps/*/trials/*/result.json")))

    with submitted(*sweep) as controller:
        eventually(lambda: ended() >= 4)
        os.kill(int((slurm / "run" / "slurmd.n3.pid").read_text()), signal.SIGKILL)
        for pid in processes(f"framework.launch.worker {outputs}", SLURMD_NODENAME="n3"):
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: ended() >= 8)
        os.killpg(controller.pid, signal.SIGKILL)
    subprocess.run([str(HOME / "scripts" / "slurm_local"), "up", str(slurm), "4"], check=True)
    done = command(*sweep, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = outputs.glob("sweeps/*")
    counts = json.loads((folder / "study.json").read_text())["counts"]
    assert counts["completed"] + counts["pruned"] == 30, counts
    assert counts["pruned"] > 0
    assert len(list((folder / "trials").iterdir())) == 30
    snapshots = [p for p in (outputs / ".snapshots").iterdir() if not p.name.startswith(".")]
    assert len(snapshots) == 1
    assert queue() == []


def test_a_grid_is_left_to_an_array_and_collected_by_the_same_command(
    command: Command, slurm: Path, outputs: Path
) -> None:
    grid = ["-m", *SMALL, f"outputs={outputs}", "trainer.max_epochs=1", "seed=1,2,3", "hydra.sweeper.n_jobs=2"]
    left = command(*grid, "hydra.launcher.wait=false")
    assert left.returncode == 0, left.stderr
    assert "3 trials submitted, 2 at once" in left.stdout
    assert len(queue("-r", "-o", "%i")) == 3
    done = command(*grid)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 trials: 3 completed" in done.stdout
    (folder,) = outputs.glob("sweeps/*")
    assert {Job(p).attempts for p in (folder / "trials").iterdir()} == {1}  # none was submitted twice


def test_where_the_queue_forgets_accounts_tell_how_a_job_ended(tmp_path: Path) -> None:
    need("slurmdbd")
    need("mariadbd")
    with running_slurm(tmp_path / "slurm", SLURM_ACCOUNTING="1"):
        backend = SlurmBackend(1, Resources(), Remote("/bin/true", tmp_path))
        jobs = [Job.create(tmp_path / name, OmegaConf.create(), [], {"title": name}) for name in ("done", "killed")]
        backend.submit(jobs[0])
        SlurmBackend(1, Resources(extra={"hold": True}), Remote("/bin/true", tmp_path)).submit(jobs[1])
        backend.kill(jobs[1])

        def forgotten() -> bool:
            return queue("-t", "all") == []

        eventually(forgotten)
        eventually(lambda: backend.phases(jobs) == [Phase.gone, Phase.gone])
        assert backend.states([jobs[0]])[0] == "completed"
        assert backend.why_gone(jobs[0]) is None
        assert backend.why_gone(jobs[1]) == "SLURM says CANCELLED"
