"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20


def write_atomic(path: Path, content: str | bytes, durable: bool = True) -> None:
    """Write a file aside and rename it into place; a crash leaves the old one or the new one, whole.

    Args:
        path: where to.
        content: what.
        durable: wait until it is on the disk, so that a power failure, too, leaves it whole.
    """
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        aside = Path(name)
        aside.chmod(0o644)
        aside.replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    """Write JSON atomically; keys keep their order."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", durable)


@contextmanager
def folder_aside(final: Path) -> Iterator[Path]:
    """Yield an empty folder beside `final`; on success it takes the place of `final`, on error it vanishes."""
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}."))
    try:
        yield aside
        aside.chmod(0o755)
        if final.exists():
            shutil.rmtree(final)
        aside.replace(final)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's files with their relative names, in hexadecimal."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        if path.is_dir():
            digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def is_locked(path: Path) -> bool:
    """Return whether a process of this machine holds the lock (`flock`) of a file, which need not be there."""
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
