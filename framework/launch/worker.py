"""Runs one job, wherever it was sent: `python -m framework.launch.worker JOB_DIR`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from framework.config.plugins import register
from framework.config.schema import Config
from framework.errors import EXIT_DONE, EXIT_PREEMPTED, EXIT_USER, Preempted, reason_of
from framework.record.console import report_failure
from framework.record.run import RunRecord

from .jobs import LOG, REPORTS, STOP, Job, Result, Status

RUNNER, HELPER = "framework.runner", "framework.training.node"
_LOOK_S = 1.0
NODE_RANK = "FRAMEWORK_NODE_RANK"
_STATUS = {EXIT_DONE: Status.completed, EXIT_PREEMPTED: Status.preempted, EXIT_USER: Status.mistaken}


class Reports:
    """A tracker that writes validation metrics to a job's `reports.jsonl`, for whoever decides whether it goes on.

    Args:
        folder: the job's.
    """

    def __init__(self, folder: Path) -> None:
        self._file = (folder / REPORTS).open("ab", buffering=0)

    def start(self, record: RunRecord, config: Mapping[str, Any]) -> None:
        """Begin."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write the validation metrics of a step, as one line at once."""
        validated = {name: value for name, value in metrics.items() if name.startswith("val/")}
        if validated:
            self._file.write(f"{json.dumps({'step': step, 'metrics': validated})}\n".encode())

    def finish(self, record: RunRecord) -> None:
        """Close."""
        self._file.close()


def run_job(folder: Path) -> int:
    """Run a job in this process, and write down how it ended; returns the exit code.

    On the further nodes of a job that has several, it starts what ranks the first node asks for.
    """
    job = Job(folder)
    if node := node_rank():
        return _help(job, node)
    with job.lock():
        if job.needs_nothing():
            return EXIT_DONE
        if (asked := job.asked_to_stop()) is not None:
            return _end_unbegun(job, *asked)
        if os.environ.get("FRAMEWORK_STOP_BY_FILE"):
            _watch_for_stop(job.folder)
        return _run(job, experiment)


def node_rank() -> int:
    """Return which of a job's nodes this is, as its scheduler says; 0 for the first."""
    return int(os.environ.get(NODE_RANK) or os.environ.get("JOB_COMPLETION_INDEX", "0"))


def _help(job: Job, node: int) -> int:
    """Serve as a further node until the first has ended; returns what that one ended with."""
    if job.needs_nothing():
        return EXIT_DONE
    before = job.result()

    def is_over() -> bool:
        return job.result() not in (None, before)

    import_module(HELPER).help_train(Path(job.config().run_dir), node, job.current_start, is_over)
    result = job.result()
    assert result is not None
    return EXIT_DONE if job.needs_nothing() and result.status is not Status.mistaken else result.exit_code


def experiment(job: Job, config: DictConfig) -> tuple[str, Mapping[str, float]]:
    """Run the experiment of a job; returns its run directory and metrics."""
    typed = OmegaConf.merge(OmegaConf.structured(Config), config)
    record: RunRecord = import_module(RUNNER).run(typed, job.described["overrides"], [Reports(job.folder)])
    return str(record.folder), record.metrics


def _end_unbegun(job: Job, status: Status, reason: str) -> int:
    """Write down that a job was asked to stop before it could begin."""
    run: str | None = job.config().get("run_dir")
    if run is not None:
        RunRecord(Path(run)).update(status=str(status), error=reason)
    job.write_result(Result(job.attempt, status, EXIT_PREEMPTED, reason, run, {}, time.time(), time.time()))
    return EXIT_DONE


def _run(job: Job, work: Callable[[Job, DictConfig], tuple[str, Mapping[str, float]]]) -> int:
    register()
    began, error, code, metrics = time.time(), None, EXIT_DONE, dict[str, float]()
    start = job.started()
    config = job.config()
    run: str | None = config.get("run_dir")
    try:
        run, found = work(job, config)
        metrics = dict(found)
    except (Exception, KeyboardInterrupt, Preempted) as caught:
        code, error = report_failure(caught), reason_of(caught)
    status, asked = _STATUS.get(code, Status.failed), job.asked_to_stop()
    if status in (Status.preempted, Status.failed) and asked is not None:  # wherever the signal met it
        status, error = asked
        if run is not None:
            RunRecord(Path(run)).update(status=str(status), error=error)
    job.write_result(Result(job.attempt, status, code, error, run, metrics, began, time.time()), start)
    return code


def _folder(place: Path) -> Path:
    """Return the job's folder: the place itself, or the line of a list that this pod of an array is for."""
    if place.is_dir():
        return place
    return Path(place.read_text(encoding="utf-8").splitlines()[int(os.environ["JOB_COMPLETION_INDEX"])])


def _copy_output(log: Path) -> None:
    """Write what is printed to a file as well, by a process that signals to this one do not reach."""
    tee = subprocess.Popen(["tee", "-a", str(log)], stdin=subprocess.PIPE, start_new_session=True)
    assert tee.stdin is not None
    sys.stdout.flush()
    os.dup2(tee.stdin.fileno(), 1)
    os.dup2(tee.stdin.fileno(), 2)


def _watch_for_stop(folder: Path) -> None:
    """Signal this process once its job is asked to stop, for clusters that have no signals."""

    def watch() -> None:
        while not (folder / STOP).exists():
            time.sleep(_LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    place = _folder(Path(sys.argv[1]))
    if os.environ.get("FRAMEWORK_KEEP_LOG"):
        _copy_output(place / LOG)
    for number in (signal.SIGTERM, signal.SIGUSR1):  # process 1 of a pod would not hear them otherwise
        signal.signal(number, lambda *_: os._exit(EXIT_PREEMPTED))
    ended = run_job(place)
    sys.stdout.flush()
    os._exit(ended)
