import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from framework.record.catalogue import status_of
from framework.record.run import RunRecord
from tests.conftest import HOME, Command
from tests.integration.conftest import need

pytestmark = pytest.mark.integration
LONG = [
    "stages=[prepare,train]",
    "trainer.max_epochs=40",
    "trainer.threads=1",
    "model.widths=[8,16]",
    "trainer.log_every_n_steps=1",
]


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "run.py", *arguments], cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def logged(folder: Path, rows: int) -> bool:
    file = folder / "metrics.csv"
    return file.exists() and file.read_text().count("\n") > rows


def weights(folder: Path) -> bytes:
    return (folder / "model/trained/weights.safetensors").read_bytes()


def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(
    command: Command, outputs: Path, tmp_path: Path
) -> None:
    undisturbed, killed = tmp_path / "a", tmp_path / "b"
    assert command(*LONG, f"outputs={outputs}", f"run_dir={undisturbed}").returncode == 0
    arguments = [*LONG, f"outputs={outputs}", f"run_dir={killed}"]
    process = start(*arguments)
    wait_for(lambda: list(killed.glob("checkpoints/step_*")) and logged(killed, 300), process)
    process.kill()
    process.wait()
    assert status_of(RunRecord(killed)) == "lost"
    process = start(*arguments)
    wait_for(lambda: logged(killed, 1500), process)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "run_dir" in errors
    assert RunRecord(killed)["status"] == "preempted"
    again = command(*arguments)
    assert again.returncode == 0, again.stderr
    assert "went on from a checkpoint" in again.stdout
    assert weights(killed) == weights(undisturbed)
    assert RunRecord(killed).metrics == RunRecord(undisturbed).metrics
    done_before = command(*arguments)
    assert "train: done before" in done_before.stdout


def test_a_second_interrupt_stops_at_once(outputs: Path, tmp_path: Path) -> None:
    process = start(*LONG, f"outputs={outputs}", f"run_dir={tmp_path}/run")
    wait_for(lambda: logged(tmp_path / "run", 10), process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert RunRecord(tmp_path / "run")["status"] == "preempted"


def test_a_signal_that_meets_ranks_before_they_listen_is_a_stop_and_no_failure(outputs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(*LONG, "strategy=ddp", "strategy.devices=2", f"outputs={outputs}", f"run_dir={run}")
    ranks: list[int] = []

    def started() -> bool:
        found = subprocess.run(["pgrep", "-f", f"framework.training.rank {run}"], capture_output=True, text=True)
        ranks[:] = map(int, found.stdout.split())
        return len(ranks) == 2

    wait_for(started, process)
    for pid in (process.pid, *ranks):  # as a scheduler does
        os.kill(pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert RunRecord(run)["status"] == "preempted"


def test_a_full_disk_is_one_clear_message_and_the_run_says_so(command: Command, outputs: Path, tmp_path: Path) -> None:
    assert command("stages=[prepare]", f"outputs={outputs}").returncode == 0
    before = (outputs / "latest" / "run.json").read_bytes()
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run([need("mount"), "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("a tmpfs cannot be mounted here")
    try:
        small = ["stages=[prepare,train]", f"data.store.root={outputs}/datasets", f"run_dir={disk}/run"]
        done = command(f"outputs={tmp_path}/other", *small)
        record = json.loads((disk / "run" / "run.json").read_text())
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert done.returncode == 1
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert record["status"] == "failed"
    assert "disk is full" in record["error"]
    assert (outputs / "latest" / "run.json").read_bytes() == before


def test_a_user_error_is_exit_code_2_without_traceback_and_the_run_has_the_reason(
    command: Command, outputs: Path
) -> None:
    done = command("data.source.loader=load_digit", f"outputs={outputs}")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Did you mean `load_digits`" in done.stderr
    record = RunRecord(outputs / "latest")
    assert record["status"] == "failed"
    assert "load_digits" in record["error"]


def test_a_bug_is_exit_code_1_with_its_traceback(command: Command, outputs: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "class Broken:\n    def __call__(self, rows):\n        return rows['x'].nothing\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = command("+data.transforms.z._target_=broken.Broken", f"outputs={outputs}", env=environment)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert RunRecord(outputs / "latest")["status"] == "failed"
