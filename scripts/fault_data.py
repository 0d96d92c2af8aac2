"""Faults, injected for real into ingest and datasets: every one must end in a whole dataset or an error that names it.

    .venv/bin/python scripts/fault_data.py                  # 100 kills, 1,000 flips, and the rest; some minutes
    .venv/bin/python scripts/fault_data.py --kills 5 --flips 50

Prints a table, and exits with 1 when a fault got through. On two cores, 100 kills and 1,000 flips:

    kill -9 during ingest               every shard equal to those of an undisturbed ingest
    flipped bits                        1000 of 1000 named with their shard
    shards removed, truncated, swapped  each named, by reading and by verify
    full disk                           a clear end without a version; with room it goes on to the same version
    read-only target                    a clear end
    torn manifest                       406 torn or altered ones: each refused by name, or read as it was
    removed while it is read            right batches, then an error that names the shard
    three ingests at once               one version, whole
    dead worker of Dask's processes     a clear end; started again it goes on to the same version
    dead worker of a cluster            its work is done by others; the version is the same
    twenty times the memory             8.0 GB by two workers of 400 MB each in 73 s, none restarted; whole
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from framework.data.ingest import Recipe, ingest
from framework.data.loader import ShardLoader
from framework.data.manifest import MANIFEST, Field, Manifest
from framework.data.pools import DistributedPool, LocalPool
from framework.data.sources import Synthetic
from framework.data.store import ShardReader
from framework.data.transforms import Standardise
from framework.data.versions import remove, verify
from framework.errors import DataError

FIELDS: dict[str, dict[str, Any]] = {
    "image": {"shape": [3, 16, 16], "dtype": "float32"},
    "label": {"shape": [], "dtype": "int64"},
}


def recipe(rows: int = 6000) -> Recipe:
    """Return an ingest of noise with a transform that learns, long enough to be killed anywhere."""
    return Recipe(
        name="noise",
        source=Synthetic(rows, FIELDS, partition_rows=500),
        transforms=[Standardise("image", axis=1)],
        description={},
        fields={n: Field(f["dtype"], tuple(f["shape"])) for n, f in FIELDS.items()},
        fractions={"train": 0.8, "test": 0.2},
        chunk_bytes=64 * 1024,
        shard_bytes=1024 * 1024,
    )


def contents(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return every row of a version."""
    readers = {split: ShardReader(folder, split) for split in Manifest.read(folder).splits}
    return {split: r.read_rows(0, r.rows) for split, r in readers.items()}


def checksums(folder: Path) -> list[str]:
    """Return the checksums of a version's shards."""
    return [s.sha256 for split in Manifest.read(folder).splits.values() for s in split.shards]


def start_ingest(root: Path, *more: str) -> subprocess.Popen:
    """Start the ingest in a process of its own."""
    command = [sys.executable, __file__, "--ingest", str(root), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kills(count: int, work: Path, good: Path) -> str:
    """Kill an ingest again and again at random moments, then let it end."""
    rng = random.Random(0)
    done = finished = 0
    root = work / "killed"
    while done < count:
        process = start_ingest(root)
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        time.sleep(rng.uniform(0, 1.6))
        if process.poll() is not None:
            assert process.returncode == 0, process.communicate()
            finished += 1
            assert checksums(next(root.glob("noise/[!.]*"))) == checksums(good)
            shutil.rmtree(root)
            continue
        process.kill()
        process.wait()
        done += 1
    assert start_ingest(root).wait() == 0
    folder = next(root.glob("noise/[!.]*"))
    assert checksums(folder) == checksums(good)
    assert not [p for p in root.rglob(".*") if p.is_dir()], "something was left behind"
    return f"{done} kills, {finished + 1} versions finished, every shard equal to the undisturbed ones"


def flips(count: int, work: Path, good: Path) -> str:
    """Flip a random bit in a random shard, then read everything."""
    rng = random.Random(1)
    expected = contents(good)
    shards = [s.path for split in Manifest.read(good).splits.values() for s in split.shards]
    copy = shutil.copytree(good, work / "flipped")
    found = harmless = 0
    for _ in range(count):
        file = copy / rng.choice(shards)
        file.chmod(0o644)
        content = bytearray(file.read_bytes())
        at, bit = rng.randrange(len(content)), rng.randrange(8)
        content[at] ^= 1 << bit
        file.write_bytes(content)
        try:
            read = contents(copy)
        except DataError as error:
            assert str(file) in str(error), error
            found += 1
        else:  # in the index, of a chunk that is not there
            assert all(np.array_equal(read[s][f], expected[s][f]) for s in expected for f in expected[s])
            harmless += 1
        content[at] ^= 1 << bit
        file.write_bytes(content)
    assert verify(copy) == []
    return f"{found} of {count} named with their shard, {harmless} without effect on any row"


def shards_gone_short_or_swapped(_: int, work: Path, good: Path) -> str:
    """Remove, shorten and swap shards; read, and verify."""
    manifest = Manifest.read(good)
    a, b = [s.path for s in manifest.split("train").shards if s.field == "image"][:2]
    for what in ("removed", "truncated", "swapped"):
        copy = shutil.copytree(good, work / what)
        first, second = copy / a, copy / b
        for file in (first, second):
            file.chmod(0o644)
        if what == "removed":
            first.unlink()
        elif what == "truncated":
            first.write_bytes(first.read_bytes()[:-100])
        else:
            one, two = first.read_bytes(), second.read_bytes()
            first.write_bytes(two)
            second.write_bytes(one)
        damages = {d.shard for d in verify(copy)}
        assert a in damages, what
        try:
            contents(copy)
        except DataError as error:
            assert str(first) in str(error)
        else:
            raise AssertionError(f"{what}: read without a word")
    return "each named, by reading and by verify"


def full_disk(_: int, work: Path, good: Path) -> str:
    """Ingest onto a disk that is too small, make room, and go on."""
    disk = work / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=True)
    try:
        process = start_ingest(disk)
        _, errors = process.communicate()
        assert process.returncode != 0
        assert "No space left" in errors, errors
        assert not list(disk.rglob(MANIFEST))
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        assert start_ingest(disk).wait() == 0
        assert checksums(next(disk.glob("noise/[!.]*"))) == checksums(good)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return "a clear end without a version; with room it goes on to the same version"


def read_only_target(_: int, work: Path, good: Path) -> str:
    """Ingest onto a disk that cannot be written."""
    disk = work / "fixed"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)], check=True)
    try:
        process = start_ingest(disk)
        _, errors = process.communicate()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert process.returncode != 0
    assert "Read-only file system" in errors, errors
    return "a clear end"


def torn_manifest(_: int, work: Path, good: Path) -> str:
    """Cut the manifest at every tenth byte, and flip one bit at every tenth."""
    text = (good / MANIFEST).read_bytes()
    copy = shutil.copytree(good, work / "torn")
    (copy / MANIFEST).chmod(0o644)
    tried = 0
    for at in range(0, len(text) - 1, max(1, len(text) // 200)):
        for content in (text[:at], text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :]):
            (copy / MANIFEST).write_bytes(content)
            tried += 1
            try:
                assert Manifest.read(copy) == Manifest.read(good), at
            except DataError as error:
                assert str(copy) in str(error)
    return f"{tried} torn or altered manifests: each refused by name, or read as it was"


def removed_while_read(_: int, work: Path, good: Path) -> str:
    """Remove a version while a loader reads it."""
    copy = shutil.copytree(good, work / "going" / "noise" / "v")
    loader = ShardLoader(copy, "train", 64, window_bytes=256 * 1024)
    expected = set(contents(good)["train"]["image"][:, 0, 0, 0].tolist())
    seen = 0
    try:
        for i, batch in enumerate(loader):
            if i == 3:
                remove(copy)
            assert all(v in expected for v in batch["image"][:, 0, 0, 0].tolist())
            seen += 1
    except DataError as error:
        assert "missing" in str(error), error
        return f"{seen} right batches, then an error that names the shard"
    return f"all {seen} batches, right (its files were open)"


def two_at_once(_: int, work: Path, good: Path) -> str:
    """Ingest the same thing in three processes at once."""
    root = work / "together"
    processes = [start_ingest(root) for _process in range(3)]
    assert [p.wait() for p in processes] == [0, 0, 0]
    (folder,) = root.glob("noise/[!.]*")
    assert checksums(folder) == checksums(good)
    return "one version, whole"


def dead_worker(_: int, work: Path, good: Path) -> str:
    """Kill a worker of Dask's process pool in the middle, then start again."""
    root = work / "worker"
    process = start_ingest(root, "processes")
    killed = False
    while process.poll() is None and not killed:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        busy = [c for c in children if "spawn_main" in Path(f"/proc/{c}/cmdline").read_text()]
        if busy and any(root.rglob("rows.json")):
            os.kill(int(busy[-1]), 9)
            killed = True
        time.sleep(0.01)
    _, errors = process.communicate()
    assert killed
    assert process.returncode != 0, "a pool without its worker cannot have ended well"
    assert "terminated abruptly" in errors or "BrokenProcessPool" in errors, errors
    assert start_ingest(root, "processes").wait() == 0
    assert checksums(next(root.glob("noise/[!.]*"))) == checksums(good)
    return "a clear end; started again it goes on to the same version"


def dead_distributed_worker(_: int, work: Path, good: Path) -> str:
    """Kill a worker of a `distributed` cluster in the middle of an ingest."""
    from distributed import Client, LocalCluster

    root = work / "distributed"
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster,
        Client(cluster) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        made = pool.submit(ingest, recipe(), root, DistributedPool(client))
        while not list(root.rglob("rows.json")):
            time.sleep(0.01)
        os.kill(int(next(iter(client.run(os.getpid).values()))), 9)
        folder, _made = made.result()
    assert checksums(folder) == checksums(good)
    return "its work is done by others; the version is the same"


def more_than_memory(megabytes: int, work: Path, _: Path) -> str:
    """Ingest twenty times what a worker may use, with two workers."""
    from distributed import Client, LocalCluster

    row_bytes = sum(f.value_bytes for f in recipe().fields.values())
    rows = 20 * megabytes * 1_000_000 // row_bytes
    source = Synthetic(rows, FIELDS, partition_rows=5000)
    layout: dict[str, Any] = {"chunk_bytes": Recipe.chunk_bytes, "shard_bytes": Recipe.shard_bytes}
    large = replace(recipe(), source=source, transforms=[], **layout)
    options: dict[str, Any] = {"host": "127.0.0.1", "dashboard_address": None, "threads_per_worker": 1}
    with (
        LocalCluster(n_workers=2, memory_limit=f"{megabytes}MB", **options) as cluster,
        Client(cluster) as client,
    ):
        workers = set(client.run(os.getpid).values())
        began = time.perf_counter()
        folder, _made = ingest(large, work, DistributedPool(client))
        seconds = time.perf_counter() - began
        assert set(client.run(os.getpid).values()) == workers, "a worker was restarted"
    assert sum(split.rows for split in Manifest.read(folder).splits.values()) == rows
    assert not verify(folder)
    size = rows * row_bytes / 1e9
    return f"{size:.1f} GB by two workers of {megabytes} MB each in {seconds:.0f} s, none restarted; whole"


FAULTS: dict[str, Callable[[int, Path, Path], str]] = {
    "kill -9 during ingest": kills,
    "flipped bits": flips,
    "shards removed, truncated, swapped": shards_gone_short_or_swapped,
    "full disk": full_disk,
    "read-only target": read_only_target,
    "torn manifest": torn_manifest,
    "removed while it is read": removed_while_read,
    "three ingests at once": two_at_once,
    "dead worker of Dask's processes": dead_worker,
    "dead worker of a cluster": dead_distributed_worker,
    "twenty times the memory": more_than_memory,
}


def main() -> int:
    """Inject every fault; returns the exit code."""
    parser = argparse.ArgumentParser(description="Inject faults into ingest and datasets.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--memory", type=int, default=400, help="megabytes of a worker; 0 leaves it out")
    parser.add_argument("--only", nargs="*", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--ingest", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ingest:
        print("begun", flush=True)
        ingest(recipe(), Path(arguments.ingest[0]), LocalPool(*arguments.ingest[1:]))
        return 0
    counts = {"kill -9 during ingest": arguments.kills, "flipped bits": arguments.flips}
    counts["twenty times the memory"] = arguments.memory
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        good, _ = ingest(recipe(), Path(folder) / "good")
        for name in (n for n in arguments.only if counts.get(n) != 0):
            work = Path(folder) / name.replace(" ", "_")
            work.mkdir()
            try:
                outcome = FAULTS[name](counts.get(name, 0), work, good)
            except (AssertionError, subprocess.CalledProcessError) as error:
                outcome, failed = f"GOT THROUGH: {error}", failed + 1
            print(f"{name:36}{outcome}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
