"""A sweep's folder, and the trials in it: what every process that works on the sweep sees.

study.json         what is looked for, where the study lies, how far it is
trials/<number>/   a job for each trial (`framework.launch.jobs`)
controllers/<id>   locked by each process that works on the sweep, for as long as it lives
trials.csv, trials.parquet, recipe/best.yaml, report.html   what came of it
"""

from __future__ import annotations

import fcntl
import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from framework.errors import UserError
from framework.launch.jobs import Job, Result
from framework.record.files import is_locked, write_json

from .search import State
from .space import Value

STUDY = "study.json"


@dataclass
class Trial:
    """A trial, as a controller knows it.

    Args:
        number: in the study.
        values: of what is varied.
        folder: its job's.
        training: names what its training depends on; trials with the same one train the same model.
        state: see `State`.
        objectives: their values, once it is completed.
        error: why it failed or was pruned.
        feasible: it keeps all bounds.
        mistaken: it failed by what the user can mend.
        taken_from: the trial whose training, or whose whole result, it took over.
        run: its run directory.
        started, ended: seconds since 1970.
        slot: in which it ran.
    """

    number: int
    values: Mapping[str, Value]
    folder: Path
    training: str | None = None
    state: State = State.open
    objectives: tuple[float, ...] = ()
    error: str | None = None
    mistaken: bool = False
    feasible: bool = True
    taken_from: int | None = None
    run: str | None = None
    started: float = 0.0
    ended: float = 0.0
    slot: int = 0
    controller: str = ""
    reported: int = 0
    last_step: int = -1
    validations: int = 0
    latest: Mapping[str, float] = field(default_factory=dict)
    job: Job | None = field(default=None, repr=False)

    @property
    def seconds(self) -> float:
        """How long its last attempt took."""
        return max(0.0, self.ended - self.started)

    def the_job(self) -> Job:
        """Return its job."""
        if self.job is None:
            self.job = Job(self.folder)
        return self.job


class SweepFolder:
    """Where a sweep lies.

    Args:
        path: the folder; it is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        (self.path / "trials").mkdir(parents=True, exist_ok=True)
        (self.path / "controllers").mkdir(exist_ok=True)

    @staticmethod
    def holds_sweep(path: Path) -> bool:
        """Return whether there is a sweep."""
        return (path / STUDY).exists()

    def described(self) -> dict[str, Any]:
        """Return `study.json`; empty when there is none yet.

        Raises:
            UserError: when it is damaged.
        """
        try:
            return json.loads((self.path / STUDY).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except json.JSONDecodeError as error:
            raise UserError(f"`{self.path / STUDY}` is damaged: {error}") from None

    def describe(self, **entries: Any) -> None:
        """Set entries of `study.json`."""
        write_json(self.path / STUDY, {**self.described(), **entries}, durable=False)

    def trial_folder(self, number: int) -> Path:
        """Return where a trial's job lies."""
        return self.path / "trials" / str(number)

    def has(self, number: int) -> bool:
        """Return whether a trial was written down."""
        return (self.trial_folder(number) / "job.json").exists()

    def numbers(self) -> list[int]:
        """Return the numbers of all trials that were written down."""
        return sorted(n for p in (self.path / "trials").iterdir() if p.name.isdecimal() and self.has(n := int(p.name)))

    def load(self, number: int) -> Trial:
        """Return a trial as its job's folder tells; its state is for whoever judges results to set."""
        job = Job(self.trial_folder(number))
        notes = job.notes
        result = job.result()
        return Trial(
            number,
            notes["values"],
            job.folder,
            notes["training"],
            taken_from=notes.get("taken_from"),
            run=notes.get("run"),
            started=result.started if result else notes.get("started", 0.0),
            ended=result.ended if result else 0.0,
            slot=notes.get("slot", 0),
            controller=notes.get("controller", ""),
            job=job,
        )

    def result_of(self, trial: Trial) -> Result | None:
        """Return how a trial's job ended."""
        return trial.the_job().result()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the sweep for this process; others wait."""
        with (self.path / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def controller(self) -> Iterator[str]:
        """Be one of the processes that work on the sweep; yields the id."""
        name = secrets.token_hex(4)
        path = self.path / "controllers" / name
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield name
            finally:
                path.unlink(missing_ok=True)

    def is_alive(self, controller: str) -> bool:
        """Return whether a controller lives."""
        return is_locked(self.path / "controllers" / controller) if controller else False

    def controllers(self) -> list[str]:
        """Return the controllers that live."""
        return [p.name for p in (self.path / "controllers").iterdir() if is_locked(p)]
