"""Other people's Hydra launchers (basic, joblib, submitit's) as a backend that works in batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from framework.errors import reason_of

from .backend import Phase
from .jobs import Job

JOB_VARIABLE = "FRAMEWORK_JOB"


class LauncherBackend:
    """Hands jobs to a launcher, as many at once as there are slots, and waits for all of them; see `Backend`.

    Args:
        launcher: set up with `run_named_job` as the task.
        slots: how many jobs make a batch.
    """

    def __init__(self, launcher: Launcher, slots: int) -> None:
        self._launcher, self.slots = launcher, slots
        self._batch: list[Job] = []
        self._launched = 0
        self._why: dict[Path, str] = {}

    def submit(self, job: Job) -> None:
        """Put a job into the next batch."""
        self._batch.append(job)

    def wait(self, seconds: float) -> None:
        """Run the batch."""
        if not self._batch:
            return
        overrides = [
            [*j.described["overrides"], f"++hydra.job.env_set.{JOB_VARIABLE}='{j.folder}'"] for j in self._batch
        ]
        try:
            self._launcher.launch(overrides, initial_job_idx=self._launched)
        except Exception as error:
            self._why = {job.folder: f"the launcher gave up: {reason_of(error)}" for job in self._batch}
        self._launched += len(self._batch)
        self._batch = []

    def phases(self, jobs: Sequence[Job]) -> list[Phase]:
        """Return which jobs are in the next batch; all others are over."""
        return [Phase.waiting if job in self._batch else Phase.gone for job in jobs]

    def stop(self, job: Job) -> None:
        """Take a job out of the next batch; one that was launched is over."""
        self.kill(job)

    def kill(self, job: Job) -> None:
        """Take a job out of the next batch; one that was launched is over."""
        self._batch = [other for other in self._batch if other is not job]

    def why_gone(self, job: Job) -> str | None:
        """Return why the launcher itself failed, where it did."""
        return self._why.pop(job.folder, None)

    def close(self) -> None:
        """Nothing is left open."""


def run_named_job(_: DictConfig) -> Any:
    """Run the job that the environment names; the task of a launcher."""
    from .worker import run_job

    return run_job(Path(os.environ[JOB_VARIABLE]))
