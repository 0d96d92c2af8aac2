"""The run directory: the one place through which the stages of an experiment hand over to each other."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from framework.errors import UserError

from .files import checksum, size_of, write_json

RUN_FILE = "run.json"
RESERVE_BYTES = 256 * 1024
RESERVED_NAMES = ("datasets", "sweeps", "latest")


@dataclass(frozen=True)
class Artifact:
    """Something a stage left behind: where (relative to the run), what kind, how big, and its checksum."""

    path: str
    kind: str
    bytes: int
    sha256: str


class RunRecord:
    """A run directory and its `run.json`, which is written whole after every change that matters.

    Args:
        folder: the run directory; it must hold a `run.json` (see `create` for a new one).

    Raises:
        UserError: when there is no readable `run.json`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        file = self.folder / RUN_FILE
        try:
            self._state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"`{folder}` is not a run: it has no {RUN_FILE}") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"`{file}` is damaged: {error}") from None

    @classmethod
    def create(cls, outputs: Path, name: str, folder: Path | None = None) -> RunRecord:
        """Make `outputs/<name>/<date>_<time>_<id>/` (or the given folder) and point `outputs/latest` at it."""
        if name in RESERVED_NAMES or "/" in name or name.startswith("."):
            raise UserError(f"name: `{name}` cannot name an experiment; {', '.join(RESERVED_NAMES)} are taken")
        now = datetime.now().astimezone()
        run_id = secrets.token_hex(3)
        folder = folder or outputs / name / f"{now:%Y-%m-%d_%H-%M-%S}_{run_id}"
        if not (folder / RUN_FILE).exists():
            folder.mkdir(parents=True, exist_ok=True)
            state = {
                "name": name,
                "id": run_id,
                "status": "running",
                "created": now.isoformat(timespec="seconds"),
                "stages": {},
                "metrics": {},
                "artifacts": {},
                "tables": {},
            }
            write_json(folder / RUN_FILE, state)
        record = cls(folder)
        _point_latest(outputs, record.folder)
        return record

    def begin(self) -> None:
        """Say that this process runs it, and put space aside so that its end can be written on a full disk."""
        self._reserve.write_bytes(os.urandom(RESERVE_BYTES))
        self.update(status="running", error=None, pid=os.getpid(), host=os.uname().nodename)

    def end(self, status: str, error: str | None = None) -> None:
        """Write down how it ended, with the space that was put aside if there is no other."""
        self._reserve.unlink(missing_ok=True)
        self.update(status=status, error=error)

    @property
    def _reserve(self) -> Path:
        return self.folder / ".reserve"

    def __getitem__(self, key: str) -> Any:
        return self._state[key]

    def get(self, key: str, default: Any = None) -> Any:
        """Return an entry of `run.json`, or the default."""
        return self._state.get(key, default)

    @property
    def metrics(self) -> dict[str, float]:
        """The flat metrics, by name (`test/accuracy`, `export/onnx/latency_ms_b1`, ...)."""
        return self._state["metrics"]

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """What the stages left behind, by name."""
        return {name: Artifact(**entry) for name, entry in self._state["artifacts"].items()}

    def update(self, **entries: Any) -> None:
        """Set entries of `run.json` and write it; an entry set to None is removed."""
        for key, value in entries.items():
            if value is None:
                self._state.pop(key, None)
            else:
                self._state[key] = value
        self.save()

    def save(self) -> None:
        """Write `run.json` atomically."""
        self._state["updated"] = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(self.folder / RUN_FILE, self._state)

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        """Set metrics by name; values are numbers."""
        self._state["metrics"].update({k: float(v) for k, v in metrics.items()})
        self.save()

    def add_table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Set a table of the record, such as one row for each compression pass."""
        self._state["tables"][name] = rows
        self.save()

    def add_artifact(self, name: str, path: Path, kind: str) -> Artifact:
        """Enter a file or folder of the run directory, with its size and checksum."""
        relative = path.resolve().relative_to(self.folder)
        artifact = Artifact(str(relative), kind, size_of(path), checksum(path))
        self._state["artifacts"][name] = asdict(artifact)
        self.save()
        return artifact

    def artifact_path(self, name: str) -> Path | None:
        """Return where an artifact lies, after comparing it with its checksum; None when there is none.

        Raises:
            UserError: when it is missing from the disk, or is not what was recorded.
        """
        artifact = self.artifacts.get(name)
        if artifact is None:
            return None
        path = self.folder / artifact.path
        if not path.exists():
            raise UserError(f"`{path}` (artifact `{name}`) is missing from the run; run its stage again")
        if checksum(path) != artifact.sha256:
            raise UserError(f"`{path}` (artifact `{name}`) is damaged: its checksum changed; run its stage again")
        return path

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run directory for this process.

        Raises:
            UserError: when another process works in it.
        """
        import fcntl

        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"run_dir: another process is working in `{self.folder}`") from None
            yield

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record a stage's start, end and outcome."""
        entry = {"status": "running", "started": datetime.now(UTC).isoformat(timespec="seconds")}
        self._state["stages"][name] = entry
        self.save()
        began = time.perf_counter()
        try:
            yield
            entry["status"] = "completed"
        except BaseException:
            entry["status"] = "failed"
            raise
        finally:
            entry["seconds"] = round(time.perf_counter() - began, 3)  # type: ignore[assignment]
            self.save()


def _point_latest(outputs: Path, folder: Path) -> None:
    link = outputs / "latest"
    aside = outputs / f".latest.{os.getpid()}"
    outputs.mkdir(parents=True, exist_ok=True)
    target = folder.relative_to(outputs.resolve()) if folder.is_relative_to(outputs.resolve()) else folder
    aside.unlink(missing_ok=True)
    aside.symlink_to(target)
    aside.replace(link)
