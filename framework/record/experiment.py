"""What a stage is given: the composed config, and the records it reads from and writes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig

from framework.errors import UserError

from .run import RunRecord


class Tracker(Protocol):
    """Shows a run somewhere: a file, a web service. One class and one YAML in `conf/tracker`.

    `start` is called once before the first stage; `finish` once at the end, whatever happened.
    """

    def start(self, record: RunRecord, config: Mapping[str, Any]) -> None:
        """Begin to follow a run; `config` is the resolved config."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Show metrics at a training step."""

    def finish(self, record: RunRecord) -> None:
        """Show the run's final metrics, tables and artifacts, and close."""


@dataclass
class Experiment:
    """A composed config with its run record, the run it continues (if any), and its trackers."""

    config: DictConfig
    record: RunRecord
    earlier: RunRecord | None = None
    trackers: Sequence[Tracker] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.record.folder

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Hand metrics to every tracker."""
        for tracker in self.trackers:
            tracker.log(metrics, step)

    def find_artifact(self, *names: str) -> Path | None:
        """Return the first of the named artifacts: of this run, else of the run it continues."""
        for record in (self.record, self.earlier):
            for name in names:
                if record is not None and (path := record.artifact_path(name)) is not None:
                    return path
        return None

    def require_artifact(self, *names: str, made_by: str) -> Path:
        """Like `find_artifact`, but its absence is the user's error."""
        path = self.find_artifact(*names)
        if path is None:
            raise UserError(
                f"there is no {names[0]} to work on: run the stage `{made_by}` first, or give from_run=PATH of a run "
                "that has one"
            )
        return path
