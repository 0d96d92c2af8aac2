"""The code that a job runs, as it was when the job was submitted: a folder named by its content, shared by all jobs.

It holds what git tracks and what it does not ignore, uncommitted changes included.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from framework.errors import UserError
from framework.record.environment import SNAPSHOT_DIFF, SNAPSHOT_FILE, git_diff, git_state
from framework.record.files import folder_aside, write_atomic, write_json

_SHOWN = 5


@dataclass(frozen=True)
class Snapshot:
    """Where code lies, and the folders in it from which modules are imported."""

    folder: Path
    imports: tuple[Path, ...]


def take_snapshot(place: Path, limit_mb: float) -> Snapshot:
    """Copy the code of the working directory's git repository, unless the same was copied before.

    Args:
        place: snapshots lie below it; nodes must see it.
        limit_mb: more than that is refused.

    Raises:
        UserError: outside of a git repository, or when the code is too big; the largest files are named.
    """
    try:
        asked = subprocess.run(["git", "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            "hydra.launcher.snapshot: the working directory is in no git repository, so what belongs to the code is "
            "not known; `git init` makes one, and hydra.launcher.snapshot=false runs the folder as it is then"
        ) from None
    root = Path(asked.stdout.strip())
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root, capture_output=True, check=True,
    ).stdout  # fmt: skip
    inside = place.resolve()
    names = sorted({os.fsdecode(name) for name in listed.split(b"\0") if name})
    files = [n for n in names if (root / n).is_file() and inside not in (root / n).resolve().parents]
    sizes = {name: (root / name).stat().st_size for name in files}
    if (total := sum(sizes.values())) > limit_mb * 1e6:
        largest = sorted(sizes, key=lambda n: -sizes[n])[:_SHOWN]
        named = "".join(f"\n  {sizes[name] / 1e6:8.1f} MB  {name}" for name in largest)
        raise UserError(
            f"hydra.launcher.snapshot_mb: the code is {total / 1e6:.0f} MB, and {limit_mb:g} are allowed; have git "
            f"ignore what is none, or allow more. The largest files:{named}"
        )
    digest = hashlib.sha256()
    for name in files:
        content = (root / name).read_bytes()
        mode = (root / name).stat().st_mode & 0o111
        digest.update(f"{name}\0{mode}\0{len(content)}\0".encode() + hashlib.sha256(content).digest())
    folder = inside / digest.hexdigest()[:16]
    if not (folder / SNAPSHOT_FILE).exists():
        with folder_aside(folder) as aside:
            for name in files:
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(root / name, aside / name)
            write_atomic(aside / SNAPSHOT_DIFF, git_diff())
            write_json(
                aside / SNAPSHOT_FILE, {"git": git_state(), "root": str(root), "bytes": total, "files": len(files)}
            )
    within = Path.cwd().resolve().relative_to(root.resolve())
    return Snapshot(folder, tuple(dict.fromkeys((folder / within, folder))))
