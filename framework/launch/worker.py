"""Runs one job, wherever it was sent: `python -m framework.launch.worker JOB_DIR`."""

from __future__ import annotations

import json
import os
import sys
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

from .jobs import REPORTS, Job, Result, Status

RUNNER, HELPER = "framework.runner", "framework.training.node"
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
    if int(os.environ.get(NODE_RANK, "0")):
        return import_module(HELPER).help_train(Path(job.config().run_dir), job.is_over)
    with job.lock():
        done = job.result()
        if done is not None and done.status.is_final:
            return EXIT_DONE
        return _run(job, experiment)


def experiment(job: Job, config: DictConfig) -> tuple[str, Mapping[str, float]]:
    """Run the experiment of a job; returns its run directory and metrics."""
    typed = OmegaConf.merge(OmegaConf.structured(Config), config)
    record: RunRecord = import_module(RUNNER).run(typed, job.described["overrides"], [Reports(job.folder)])
    return str(record.folder), record.metrics


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


if __name__ == "__main__":
    ended = run_job(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(ended)
