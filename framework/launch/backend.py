"""What every place that runs jobs has in common: this machine, SLURM, Kubernetes."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from .jobs import Job


class Phase(Enum):
    """Where a job is, as far as its backend knows; how it ended is for `Job.result` to say."""

    waiting = "waiting"
    running = "running"
    gone = "gone"


class Backend(Protocol):
    """Runs jobs in processes of their own, on this machine or elsewhere.

    What is needed to find a job again after this process has died is in the job's `handle.json` before `submit`
    returns: so any process that sees the folder can ask, stop and kill it.
    """

    slots: int
    """How many jobs may run at once."""

    def submit(self, job: Job) -> None:
        """Start a job, or put it in the queue."""

    def phases(self, jobs: Sequence[Job]) -> list[Phase]:
        """Return where each job is; one question for all of them."""

    def wait(self, seconds: float) -> None:
        """Wait until a job may have ended, at most so long."""

    def stop(self, job: Job) -> None:
        """Ask a job to save its state and end; `Job.ask_to_stop` says why, before."""

    def kill(self, job: Job) -> None:
        """End a job at once."""

    def why_gone(self, job: Job) -> str | None:
        """Return what the backend knows of why a job is gone, such as the signal that killed it."""

    def close(self) -> None:
        """Let go of what the backend itself has started; jobs that run go on."""
