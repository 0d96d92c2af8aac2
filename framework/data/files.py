"""Files of a source, local or behind a URL (`s3://`, `gs://`, `hdfs://`, `abfs://`, ...), through fsspec."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from framework.errors import DataError, UserError
from framework.record.files import write_json

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hdfs": "hdfs", "abfs": "azure", "az": "azure"}
_HASH_BLOCK = 1 << 20


@cache
def file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a path or URL, and the path within it.

    Raises:
        UserError: when the protocol is not known or its package is not installed; the extra is named.
    """
    import fsspec

    protocol = url.partition("://")[0] if "://" in url else "file"
    try:
        return fsspec.core.url_to_fs(str(Path(url).expanduser()) if protocol == "file" else url)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        hint = f": pip install 'declarative-experiments[{extra}]'" if extra else ""
        raise UserError(f"`{url}` needs a package that is not installed ({error}){hint}") from None
    except ValueError as error:
        raise UserError(f"`{url}`: {error}") from None


@dataclass(frozen=True)
class FileSet:
    """The files below a root that match some globs, in sorted order.

    Args:
        root: folder or URL.
        patterns: globs below it.
        exclude: path parts that are left out.

    Raises:
        DataError: when nothing matches, or the root cannot be reached.
    """

    root: str
    patterns: tuple[str, ...]
    exclude: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """Return the files' paths relative to the root."""
        return list(self.sizes())

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each file, by its path relative to the root."""
        system, base = file_system(self.root)
        base = base.rstrip("/")
        found: dict[str, int] = {}
        try:
            for pattern in self.patterns:
                for path, info in system.glob(f"{base}/{pattern}", detail=True).items():
                    name = path.removeprefix(base).lstrip("/")
                    if info["type"] == "file" and not set(name.split("/")) & set(self.exclude):
                        found[name] = info["size"]
        except (OSError, ConnectionError) as error:
            raise DataError(f"`{self.root}` cannot be listed: {error}") from error
        if not found:
            raise DataError(f"no file below `{self.root}` matches {', '.join(self.patterns)}")
        return dict(sorted(found.items()))

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a file's content, or a part of it."""
        try:
            with self.open(name) as file:
                file.seek(offset)
                return file.read() if length is None else file.read(length)
        except FileNotFoundError:
            raise DataError(f"`{self.path(name)}` is gone since the source was listed") from None
        except OSError as error:
            raise DataError(f"`{self.path(name)}` cannot be read: {error}") from error

    def open(self, name: str) -> Any:
        """Return a file opened for reading bytes."""
        system, base = file_system(self.root)
        return system.open(f"{base.rstrip('/')}/{name}", "rb")

    def path(self, name: str) -> str:
        """Return a file's full path or URL."""
        return f"{self.root.rstrip('/')}/{name}"

    def fingerprint(self, names: Sequence[str] | None = None) -> str:
        """Return a hash of the names and contents of the files (for object stores: of their entity tags)."""
        system, base = file_system(self.root)
        digest = hashlib.blake2b(digest_size=16)
        local = system.protocol in ("file", "local") or "file" in system.protocol
        known = _ContentHashes() if local else None
        for name in self.names() if names is None else names:
            path = f"{base.rstrip('/')}/{name}"
            content = known.of(Path(path)) if known is not None else str(system.ukey(path))
            digest.update(f"{name}\0{content}\0".encode())
        if known is not None:
            known.save()
        return digest.hexdigest()


class _ContentHashes:
    """Content hashes of local files, remembered by path, size and time of change, so that each is read once."""

    def __init__(self) -> None:
        cache_home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        self._file = cache_home / "declarative-experiments" / "content-hashes.json"
        try:
            self._known: dict[str, str] = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}
        self._new = False

    def of(self, path: Path) -> str:
        stat = path.stat()
        key = f"{path} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
        if key not in self._known:
            digest = hashlib.blake2b(digest_size=16)
            with path.open("rb") as file:
                while block := file.read(_HASH_BLOCK):
                    digest.update(block)
            self._known[key], self._new = digest.hexdigest(), True
        return self._known[key]

    def save(self) -> None:
        if self._new:
            try:
                write_json(self._file, self._known)
            except OSError:
                return  # it is only a memory; without it files are read again
