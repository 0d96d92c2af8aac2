"""The loader on a dataset in an object store that is 20 ms away, beside the same dataset on the local disk.

    .venv/bin/python scripts/bench_data_remote.py

A real S3-speaking server (moto's) on loopback, behind a proxy that holds every packet back for 10 ms each way. The
dataset: images of 3x32x32 in shards of 4 MB, zstd. The consumer takes a batch of 256, then works for as long as makes
its demand half of what the link gives ("fits the link"), so that waiting shows; the first tenth of an epoch, in which
the first shards come in, is left out ("steady").

Measured on two cores, on which the server, the proxy and the loader all run:

    the link: 49,616 samples/s (76 MB/s), 20 ms away, 4 streams
    samples/s                                                 steady   whole epoch
    local, as fast as it goes                                365,591       348,471   1.00 of local
    far, first epoch, as fast as it goes                      77,949        62,854   0.21 of local
    far, second epoch (cached), as fast as it goes           275,904       265,285   0.75 of local
    local, at half the link's rate                            24,089        24,021   1.00 of local
    far, first epoch, at half the link's rate                 23,983        22,046   1.00 of local
    far, second epoch (cached), at half the link's rate       24,039        23,977   1.00 of local
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from data_contenders import CASES, InMemory

DELAY = 0.010
SHARD_BYTES = 4_000_000
ROWS = 60_000


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Hand on what comes, each piece `DELAY` seconds after it came."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def hand_on() -> None:
        while True:
            due, piece = await pieces.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not piece:
                sink.close()
                return
            sink.write(piece)
            await sink.drain()

    task = asyncio.create_task(hand_on())
    try:
        while piece := await source.read(1 << 16):
            pieces.put_nowait((loop.time() + DELAY, piece))
    except ConnectionError:
        pass
    pieces.put_nowait((loop.time() + DELAY, b""))
    await task


async def proxy(port: int, target: int) -> None:
    """Listen on a port of loopback, and connect what comes with another."""

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(connect, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def far_store() -> Iterator[None]:
    """Run the server and the proxy, and point this process at the latter."""
    store, near = free_port(), free_port()
    commands = [
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(store)],
        [sys.executable, __file__, "--proxy", str(near), str(store)],
    ]
    processes = [subprocess.Popen(c, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for c in commands]
    try:
        for port in (store, near):
            for _ in range(300):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
        os.environ.update(
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{near}",
            AWS_ACCESS_KEY_ID="x",
            AWS_SECRET_ACCESS_KEY="x",
            AWS_DEFAULT_REGION="us-east-1",
        )
        yield
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def epoch(location: Path | str, cache: Path, work: float) -> tuple[float, float]:
    """Return samples/s of one epoch without its first tenth, and of the whole of it.

    Args:
        location: of the dataset.
        cache: where shards are kept.
        work: seconds for which the consumer works on a batch.
    """
    from framework.data.loader import ShardLoader
    from framework.data.remote import ShardCache

    loader = ShardLoader(location, "train", 256, window_bytes=8_000_000, cache=ShardCache(cache))
    began = time.perf_counter()
    tenth = len(loader) // 10
    for i, _ in enumerate(loader):
        if i == tenth:
            steady = time.perf_counter()
        if work:
            time.sleep(work)
    end = time.perf_counter()
    return (len(loader) - tenth) * 256 / (end - steady), len(loader) * 256 / (end - began)


def main() -> None:
    """Measure, and print a table with ratios."""
    parser = argparse.ArgumentParser(description="Measure the loader on a dataset in a far object store.")
    parser.add_argument("--proxy", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.proxy:
        asyncio.run(proxy(*arguments.proxy))
        return
    import s3fs

    from framework.data.ingest import Recipe, ingest
    from framework.data.manifest import Field, Manifest
    from framework.data.remote import RemoteVersion, ShardCache, publish

    case = CASES["images"]
    fields = {case.field: Field(case.dtype, case.shape), "label": Field("int64", ())}
    recipe = Recipe("far", InMemory(case, ROWS), [], {}, fields, {"train": 1.0}, shard_bytes=SHARD_BYTES)
    with tempfile.TemporaryDirectory() as folder, far_store():
        here, _ = ingest(recipe, Path(folder) / "here")
        s3fs.S3FileSystem().mkdir("bucket")
        url = publish(here, "s3://bucket/datasets")
        manifest = Manifest.read(here)
        version = RemoteVersion(url, ShardCache(Path(folder) / "link"))
        began = time.perf_counter()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(version.fetch, manifest.splits["train"].shards))
        link = ROWS / (time.perf_counter() - began)
        print(
            f"the link: {link:,.0f} samples/s ({link * manifest.bytes / ROWS / 1e6:,.0f} MB/s), 20 ms away, 4 streams"
        )
        work = 256 / (link / 2)
        rows: list[tuple[str, Path | str, str, float]] = [
            ("local, as fast as it goes", here, "none", 0.0),
            ("far, first epoch, as fast as it goes", url, "fast", 0.0),
            ("far, second epoch (cached), as fast as it goes", url, "fast", 0.0),
            ("local, at half the link's rate", here, "none", work),
            ("far, first epoch, at half the link's rate", url, "paced", work),
            ("far, second epoch (cached), at half the link's rate", url, "paced", work),
        ]
        print(f"{'samples/s':52}{'steady':>12}{'whole epoch':>14}")
        local: dict[float, float] = {}
        for name, location, cache, pace in rows:
            steady, whole = epoch(location, Path(folder) / cache, pace)
            local.setdefault(pace, steady)
            print(f"{name:52}{steady:>12,.0f}{whole:>14,.0f}   {steady / local[pace]:.2f} of local", flush=True)


if __name__ == "__main__":
    main()
