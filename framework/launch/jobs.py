"""A job: a folder that holds all a process needs to run one experiment, and what came of it.

    config.yaml     the resolved config
    job.json        which attempt is the valid one, what was typed, notes of whoever made the job
    handle.json     where it runs, as its backend says; written before anything is waited for
    reports.jsonl   validation metrics while it trains, a line each
    stop.json       why it was asked to stop
    log.txt         what it printed
    start.json      which process works on it: one that is older may write no result
    failures        how often a cluster has tried it again
    result.json     how it ended: the truth, which outranks what a scheduler says

`python -m framework.launch.worker FOLDER` runs it.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from framework.errors import UserError
from framework.record.files import is_locked, write_atomic, write_json

CONFIG, JOB, HANDLE, REPORTS, STOP, LOG, RESULT, START, FAILURES = (
    "config.yaml", "job.json", "handle.json", "reports.jsonl", "stop.json", "log.txt", "result.json", "start.json",
    "failures",
)  # fmt: skip
LIST = "jobs.txt"
"""Lists the folders of the jobs that a cluster was given as one array."""
START_VARIABLE = "FRAMEWORK_START"
"""Names this start of a job among those that its scheduler makes."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # some 50 ms a job less than OmegaConf's
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_LOCK, _LOCK_TRIES, _LOCK_WAIT_S = ".lock", 20, 0.05


class Status(StrEnum):
    """How a job ended."""

    completed = "completed"
    pruned = "pruned"
    cancelled = "cancelled"
    preempted = "preempted"
    mistaken = "mistaken"
    failed = "failed"

    @property
    def is_final(self) -> bool:
        """Whether running it again would give nothing else."""
        return self in (Status.completed, Status.pruned, Status.mistaken)


@dataclass(frozen=True)
class Result:
    """How an attempt at a job ended.

    Args:
        attempt: which one.
        status: see `Status`.
        exit_code: of the process.
        error: why it ended, where it did not end well.
        run: the run directory.
        metrics: of the run record.
        started, ended: seconds since 1970.
    """

    attempt: str
    status: Status
    exit_code: int
    error: str | None = None
    run: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    started: float = 0.0
    ended: float = 0.0


class Job:
    """A job's folder.

    Args:
        folder: where it lies.

    Raises:
        UserError: when it holds no job.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        try:
            self.described: dict[str, Any] = json.loads((self.folder / JOB).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise UserError(f"`{folder}` is not a job: {error}") from None

    @classmethod
    def create(cls, folder: Path, config: DictConfig, overrides: Sequence[str], notes: Mapping[str, Any]) -> Job:
        """Write a job down, in place of one that is over; `notes` are of whoever makes it."""
        for name in (RESULT, STOP, HANDLE, FAILURES):
            (folder / name).unlink(missing_ok=True)
        write_atomic(folder / CONFIG, _as_yaml(config), durable=False)
        described = {"attempt": secrets.token_hex(4), "attempts": 1, "overrides": list(overrides), "notes": dict(notes)}
        write_json(folder / JOB, described, durable=False)
        return cls(folder)

    @property
    def attempt(self) -> str:
        """The id of the valid attempt."""
        return str(self.described["attempt"])

    @property
    def attempts(self) -> int:
        """How many there were, this one included."""
        return int(self.described["attempts"])

    @property
    def notes(self) -> dict[str, Any]:
        """What whoever made the job wants to know of it."""
        return self.described["notes"]

    def note(self, **notes: Any) -> None:
        """Add to the notes."""
        self.notes.update(notes)
        write_json(self.folder / JOB, self.described, durable=False)

    def begin_again(self) -> None:
        """Make another attempt the valid one: results of earlier ones are no longer taken."""
        self.described |= {"attempt": secrets.token_hex(4), "attempts": self.attempts + 1}
        for name in (RESULT, STOP, HANDLE, FAILURES):
            (self.folder / name).unlink(missing_ok=True)
        write_json(self.folder / JOB, self.described)

    def config(self) -> DictConfig:
        """Return the config that is to be run."""
        found = OmegaConf.create(yaml.load((self.folder / CONFIG).read_text(encoding="utf-8"), _LOADER))
        assert isinstance(found, DictConfig)
        return found

    def change_config(self, config: DictConfig) -> None:
        """Have another config run; nobody may have begun."""
        write_atomic(self.folder / CONFIG, _as_yaml(config), durable=False)

    def result(self) -> Result | None:
        """Return how the valid attempt ended; None as long as nothing says so."""
        try:
            found = json.loads((self.folder / RESULT).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return None
        result = Result(**{**found, "status": Status(found["status"])})
        return result if result.attempt == self.attempt else None

    def started(self) -> str:
        """Take the job over for this process, from whoever had it; returns what `write_result` wants to be told."""
        start = os.environ.setdefault(START_VARIABLE, secrets.token_hex(4))  # whom this process starts belong to it
        write_json(self.folder / START, {"attempt": self.attempt, "start": start, "host": os.uname().nodename})
        return start

    def write_result(self, result: Result, start: str | None = None) -> None:
        """Write down how an attempt ended, unless another one is the valid one by now.

        A process that says by which `start` it works writes nothing once another has taken the job over: on a
        cluster, those of a lost node may live on.
        """
        if Job(self.folder).attempt != result.attempt:
            return
        if start is not None and json.loads((self.folder / START).read_text(encoding="utf-8"))["start"] != start:
            return
        write_json(self.folder / RESULT, asdict(result))

    def current_start(self) -> str | None:
        """Return by which start the job is worked on, or was."""
        try:
            return str(json.loads((self.folder / START).read_text(encoding="utf-8"))["start"])
        except (OSError, json.JSONDecodeError):
            return None

    def is_begun(self) -> bool:
        """Return whether a process has taken the valid attempt over."""
        try:
            found = json.loads((self.folder / START).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return False
        return bool(found["attempt"] == self.attempt)

    def needs_nothing(self) -> bool:
        """Return whether there is nothing to be run: it ended for good, or was asked to end, and has."""
        result = self.result()
        return result is not None and (result.status.is_final or self.asked_to_stop() is not None)

    def ask_to_stop(self, status: Status, reason: str) -> None:
        """Write down why the job is to stop, before it is signalled."""
        write_json(self.folder / STOP, {"status": status, "reason": reason}, durable=False)

    def asked_to_stop(self) -> tuple[Status, str] | None:
        """Return as what, and why, the job was asked to stop."""
        try:
            found = json.loads((self.folder / STOP).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return None
        return Status(found["status"]), found["reason"]

    def reports(self, start: int = 0) -> tuple[list[tuple[int, dict[str, float]]], int]:
        """Return the steps and metrics reported from byte `start` on, and where the next ones will begin."""
        try:
            with (self.folder / REPORTS).open("rb") as file:
                file.seek(start)
                content = file.read()
        except OSError:
            return [], start
        whole = content[: content.rfind(b"\n") + 1]
        lines = [json.loads(line) for line in whole.splitlines()]
        return [(line["step"], line["metrics"]) for line in lines], start + len(whole)

    def last_lines(self, count: int = 5) -> str:
        """Return the end of what the job printed."""
        try:
            with (self.folder / LOG).open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 16_384))
                return "\n".join(file.read().decode(errors="replace").strip().splitlines()[-count:])
        except OSError:
            return ""

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the job for this process.

        Raises:
            UserError: when another process runs it.
        """
        with (self.folder / _LOCK).open("a+") as file:
            for tries in range(_LOCK_TRIES):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:  # perhaps by somebody who only looks
                    if tries == _LOCK_TRIES - 1:
                        raise UserError(f"another process runs the job in `{self.folder}`") from None
                    time.sleep(_LOCK_WAIT_S)
            yield

    def is_held(self) -> bool:
        """Return whether a process of this machine runs the job."""
        return is_locked(self.folder / _LOCK)


def _as_yaml(config: DictConfig) -> str:
    plain = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    return yaml.dump(plain, Dumper=_DUMPER, sort_keys=False, allow_unicode=True)
