"""How a job's process is started on another machine: interpreter, code, environment."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from framework.record.environment import SNAPSHOT_VARIABLE

from .snapshot import Snapshot


@dataclass(frozen=True)
class Remote:
    """What comes before the worker, and the worker itself.

    Args:
        python: the interpreter there.
        folder: the working directory there, to which relative paths of configs refer.
        snapshot: the code; None for the working directory as it is then.
        modules: what `module load` is given.
        setup: lines of shell before the worker is started.
        container: the command that the worker is started by, in a container, as in `apptainer exec --nv image.sif`.
    """

    python: str
    folder: Path
    snapshot: Snapshot | None = None
    modules: Sequence[str] = ()
    setup: Sequence[str] = ()
    container: str | None = None

    def environment(self) -> dict[str, str]:
        """Return the variables that make the worker run the code that was submitted."""
        if self.snapshot is None:
            return {}
        paths = os.pathsep.join(map(str, self.snapshot.imports))
        return {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1", SNAPSHOT_VARIABLE: str(self.snapshot.folder)}

    def preamble(self) -> str:
        """Return the lines of shell before the worker is started."""
        lines = [f"cd {shlex.quote(str(self.folder))} || exit 1"]
        lines += [f"module load {shlex.quote(name)}" for name in self.modules]
        lines += [f"export {name}={shlex.quote(value)}" for name, value in self.environment().items()]
        return "\n".join([*lines, *self.setup])

    def worker(self) -> str:
        """Return the command that is given a job's folder."""
        worker = f"{shlex.quote(self.python)} -m framework.launch.worker"
        return f"{self.container} {worker}" if self.container else worker
