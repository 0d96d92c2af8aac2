"""Dataset versions behind a URL: published there manifest last, and read through a local cache of whole shards."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from framework.errors import DataError
from framework.record.console import progress
from framework.record.files import checksum, write_atomic

from .files import file_system
from .manifest import MANIFEST, Manifest, Shard

DEFAULT_CACHE = Path("~/.cache/declarative-experiments/shards")
DEFAULT_CACHE_BYTES = 20_000_000_000


def is_url(location: Path | str) -> bool:
    """Return whether a location lies behind a protocol."""
    return "://" in str(location)


@dataclass(frozen=True)
class ShardCache:
    """A folder of shards, shared by processes, each shard checked when it comes in; the least recently used ones go.

    Args:
        folder: where.
        limit_bytes: at most so many bytes; a dataset that is larger is fetched again in every epoch.
    """

    folder: Path = DEFAULT_CACHE
    limit_bytes: int = DEFAULT_CACHE_BYTES

    def make_room(self, wanted: int, keep: Path) -> None:
        """Remove the shards that were used longest ago until `wanted` more bytes fit; `keep` stays."""
        root = self.folder.expanduser()
        with (root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            files = [(f.stat(), f) for f in root.rglob("*") if f.is_file() and f.name[0] != "." and f.name != MANIFEST]
            total = sum(stat.st_size for stat, _ in files) + wanted
            for stat, file in sorted(files, key=lambda pair: pair[0].st_mtime_ns):
                if total <= self.limit_bytes:
                    return
                if file != keep:
                    file.unlink(missing_ok=True)  # a process that reads it has it open
                    total -= stat.st_size


@dataclass(frozen=True)
class RemoteVersion:
    """A published version, read only.

    Args:
        url: its folder, such as `s3://bucket/datasets/digits/47a0e068bc50`.
        cache: where its shards are kept here.

    Raises:
        DataError: when there is no version there.
    """

    url: str
    cache: ShardCache = ShardCache()

    @cached_property
    def folder(self) -> Path:
        """Return the local folder: the manifest, and those shards that have been used."""
        name = hashlib.blake2b(self.url.rstrip("/").encode(), digest_size=8).hexdigest()
        folder = self.cache.folder.expanduser() / name
        if not (folder / MANIFEST).exists():
            write_atomic(folder / MANIFEST, self._read_manifest())
        return folder

    def _read_manifest(self) -> bytes:
        system, base = file_system(self.url)
        try:
            return system.cat_file(f"{base.rstrip('/')}/{MANIFEST}")
        except FileNotFoundError:
            raise DataError(f"`{self.url}` is not a dataset: it has no {MANIFEST}") from None
        except OSError as error:
            raise DataError(f"`{self.url}` cannot be reached: {error}") from error

    def fetch(self, shard: Shard) -> Path:
        """Return the local file of a shard, fetching it when it is not there; others wait for the one that fetches.

        Raises:
            DataError: when it is missing there, or is not what the manifest says.
        """
        file = self.folder / shard.path
        if _is_there(file, shard):
            return file
        file.parent.mkdir(parents=True, exist_ok=True)
        with (file.parent / f".{file.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_there(file, shard):
                self.cache.make_room(shard.bytes, keep=file)
                self._download(shard, file)
        return file

    def _download(self, shard: Shard, file: Path) -> None:
        system, base = file_system(self.url)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        os.close(handle)
        aside = Path(name)
        try:
            system.get_file(f"{base.rstrip('/')}/{shard.path}", name)
            if checksum(aside) != shard.sha256:
                raise DataError(f"shard `{self.url}/{shard.path}` is damaged: its checksum does not fit")
            aside.replace(file)
        except FileNotFoundError:
            raise DataError(f"shard `{self.url}/{shard.path}` is missing") from None
        finally:
            aside.unlink(missing_ok=True)


class Fetching:
    """Fetches shards ahead of their use.

    Args:
        version: where they come from.
        threads: how many at once.
    """

    def __init__(self, version: RemoteVersion, threads: int = 4) -> None:
        self.version = version
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")
        self._lock = threading.Lock()
        self._begun: dict[str, Future[Path]] = {}

    def begin(self, shards: Iterable[Shard]) -> None:
        """Fetch shards in the background, unless that has begun or they are here."""
        with self._lock:
            for shard in shards:
                if shard.path not in self._begun and not _is_there(self.version.folder / shard.path, shard):
                    self._begun[shard.path] = self._pool.submit(self.version.fetch, shard)

    def fetch(self, shard: Shard) -> Path:
        """Return a shard's local file, once it is here."""
        with self._lock:
            begun = self._begun.pop(shard.path, None)
        if begun is not None:
            begun.result()
        return self.version.fetch(shard)  # it is here, unless the cache is too small and it had to go again

    def __del__(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _is_there(file: Path, shard: Shard) -> bool:
    """Return whether a shard is in the cache, and mark it as used."""
    try:
        if file.stat().st_size != shard.bytes:
            return False
        os.utime(file)
    except FileNotFoundError:
        return False
    return True


def publish(folder: Path, root: str) -> str:
    """Copy a version to `<root>/<name>/<version>` behind a URL, its manifest last; what is there already stays.

    Returns:
        its URL.
    """
    manifest = Manifest.read(folder)
    url = f"{root.rstrip('/')}/{manifest.name}/{manifest.version}"
    system, base = file_system(url)
    if system.exists(f"{base}/{MANIFEST}"):
        return url
    files = [f for f in sorted(folder.rglob("*")) if f.is_file() and f.name != MANIFEST]
    with progress(f"publishing {manifest.name}", len(files), "files") as advance:
        for file in files:
            system.put_file(str(file), f"{base}/{file.relative_to(folder)}")
            advance()
    system.pipe_file(f"{base}/{MANIFEST}", (folder / MANIFEST).read_bytes())
    system.invalidate_cache()
    return url
