"""The loader and the ingest beside their limits and their peers, in one sitting.

    .venv/bin/python scripts/bench_data.py            # makes .venv-peers with the peers on first use

Data: 100,000 images of 3x32x32 uint8 with a label, and 100,000 windows of 1,025 uint16 tokens, half of their bits
random; batches of 256 and 32, shuffled. Figures are medians of epochs in samples/s (the page cache is warm), each
contender in a process of its own, one after another. Limits: a gather by random index from one array in memory, on one
thread and on as many as there are cores; the codec alone, decoding the very chunks on the loader's threads. Peers as
their documentation recommends, with 0 and 2 workers; mosaicml-streaming gets an empty stand-in for torchvision, which
it imports and does not use here.

Measured on two cores (a virtual machine, Debian 12), Python 3.11, torch 2.13.0:

    samples/s                                       images      tokens
    gather from memory, 1 thread                 1,936,200   2,694,626
    gather from memory, 2 threads                4,624,903   3,148,044
    the codec alone, 2 threads                   1,355,312   1,356,350
    ours, codec none                             1,102,254     969,104
    ours, codec zstd                               615,885     589,846
    memmap + DataLoader, by samples, 0 / 2 w.      214,776 /   142,021       231,474 / 22,753
    memmap + DataLoader, by batches, 0 / 2 w.    1,420,174 /   168,918     1,242,483 / 25,544
    zarr[i] + DataLoader                               399         409
    mosaicml-streaming, 0 / 2 workers               11,101 /    21,074        12,714 /  4,082
    litdata, 0 / 2 workers                          93,581 /    22,795       107,182 / 11,625
    webdataset, 0 / 2 workers                        6,573 /     6,049         6,440 /  4,817

    writing images from memory, GB/s: ours 0.46 (none), 0.41 (zstd); MDSWriter 0.036; litdata.optimize 0.018
    peak memory above the baseline, window_bytes 32 MiB (so 67 MB are allowed): 61 MB

So, with crc32c checked on every chunk: 9 to 12 times the best of the three, 4 to 5 times a DataLoader that takes
samples from a memory map; but 0.78 of one that takes whole batches from it, without checksums, shards or shuffle
windows. Compressed, 0.44 of what the codec decodes on both cores while nothing else runs; uncompressed, 0.24 to 0.31 of
the gather on both cores, 0.36 to 0.57 of that on one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

HOME = Path(__file__).resolve().parent.parent
PEERS = HOME / ".venv-peers"
PACKAGES = ["mosaicml-streaming==0.13.0", "litdata==0.2.76", "webdataset==1.0.2", "torch==2.13.0", "zarr==3.1.6"]
EPOCHS = 5


@dataclass(frozen=True)
class Case:
    """What is read: the field, its shape and dtype, the batch."""

    name: str
    field: str
    shape: tuple[int, ...]
    dtype: str
    batch: int
    rows: int

    def arrays(self, rows: int | None = None) -> dict[str, np.ndarray]:
        """Return the data: values of which half the bits are random."""
        rng = np.random.default_rng(0)
        size = (rows or self.rows, *self.shape)
        values = rng.integers(0, 256, size, dtype=np.uint8) & 0xF0
        return {self.field: values.astype(self.dtype), "label": rng.integers(0, 10, len(values)).astype(np.int64)}


CASES = {
    "images": Case("images", "image", (3, 32, 32), "uint8", 256, 100_000),
    "tokens": Case("tokens", "tokens", (1025,), "uint16", 32, 100_000),
}


@dataclass(frozen=True)
class InMemory:
    """A source of arrays that are made at the first read and are there from then on."""

    case: Case
    rows: int
    count: int = 8

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays."""
        return self.case.arrays(self.rows)

    def partitions(self) -> range:
        """Return the numbers of equal parts."""
        return range(self.count)

    def read(self, partition: int) -> dict[str, np.ndarray]:
        """Return views of one part."""
        bounds = np.linspace(0, self.rows, self.count + 1).astype(int)
        return {n: a[bounds[partition] : bounds[partition + 1]] for n, a in self.arrays.items()}

    def fingerprint(self) -> str:
        """Return the size: the content is always the same."""
        return str(self.rows)


# -- contenders: each returns a function that runs one epoch and returns the samples it saw

Epoch = Callable[[], int]


def consume(batches: Iterator[Any], first: Callable[[Any], Any]) -> int:
    """Return how many rows some batches hold; `first` gives one field of a batch."""
    return sum(len(first(batch)) for batch in batches)


def ours(case: Case, folder: Path, codec: str) -> Epoch:
    """Return an epoch of ShardLoader."""
    from framework.data.loader import ShardLoader

    subprocess.run([sys.executable, __file__, "--one", "prepare", case.name, codec, str(folder)], check=True)
    loader = ShardLoader(dataset(case, folder, codec), "train", case.batch)
    return lambda: consume(iter(loader), lambda b: b["label"])


def dataset(case: Case, folder: Path, codec: str, source: InMemory | None = None) -> Path:
    """Ingest a case (once) and return the version's folder."""
    from framework.data.ingest import Recipe, ingest
    from framework.data.manifest import Field
    from framework.data.pools import LocalPool

    source = source or InMemory(case, case.rows)
    fields = {case.field: Field(case.dtype, case.shape), "label": Field("int64", ())}
    recipe = Recipe(case.name, source, [], {}, fields, {"train": 1.0}, codec=codec)  # type: ignore[arg-type]
    return ingest(recipe, folder / "ours", LocalPool(workers=os.cpu_count() or 1))[0]


def gather(case: Case, folder: Path, threads: str) -> Epoch:
    """Return an epoch of gathering batches from memory by random index."""
    import torch

    torch.set_num_threads(int(threads))
    arrays = {n: torch.from_numpy(a.astype("int16") if a.dtype == "uint16" else a) for n, a in case.arrays().items()}

    def epoch() -> int:
        order = torch.randperm(case.rows)
        batches = ({n: a.index_select(0, part) for n, a in arrays.items()} for part in order.split(case.batch))
        return consume(batches, lambda b: b["label"])

    return epoch


def codec(case: Case, folder: Path, _: str) -> Epoch:
    """Return an epoch of decoding every chunk of the compressed dataset, from memory, on the loader's threads."""
    from numcodecs.zstd import Zstd

    from framework.data.manifest import Manifest
    from framework.data.shard import CRC_BYTES

    version = dataset(case, folder, "zstd")
    split = Manifest.read(version).split("train")
    shape = (split.chunk_rows, *case.shape)
    chunks = []
    for shard in (s for s in split.shards if s.field == case.field):
        raw = (version / shard.path).read_bytes()
        count = split.shard_rows // split.chunk_rows
        index = np.frombuffer(raw[-16 * count - CRC_BYTES : -CRC_BYTES], dtype="<u8").reshape(-1, 2)
        chunks += [raw[int(o) : int(o + n) - CRC_BYTES] for o, n in index if o != 2**64 - 1]
    threads = min(8, os.cpu_count() or 1)
    outs = [np.empty(shape, case.dtype) for _ in range(threads)]

    def work(number: int) -> None:
        for chunk in chunks[number::threads]:
            Zstd().decode(chunk, outs[number])

    def epoch() -> int:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
        return case.rows

    return epoch


def memmap(case: Case, folder: Path, option: str) -> Epoch:
    """Return an epoch of torch's DataLoader over memory-mapped arrays, by samples or by whole batches."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    for name, array in case.arrays().items():
        if not (folder / f"{case.name}-{name}.npy").exists():
            np.save(folder / f"{case.name}-{name}.npy", array)

    class Mapped(Dataset):
        def __init__(self) -> None:
            self.values = np.load(folder / f"{case.name}-{case.field}.npy", mmap_mode="r")
            self.labels = np.load(folder / f"{case.name}-label.npy", mmap_mode="r")

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, i: int) -> tuple[Any, int]:
            return self.values[i], int(self.labels[i])

    class MappedBatches(Mapped):
        def __getitems__(self, rows: list[int]) -> list[Any]:
            return [(self.values[rows], self.labels[rows])]

    def collate(batch: list[Any]) -> Any:
        return tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in batch[0])

    by, workers = option.split()
    options: dict[str, Any] = {"shuffle": True, "num_workers": int(workers)}
    loader: DataLoader = (
        DataLoader(MappedBatches(), case.batch, collate_fn=collate, **options)
        if by == "batches"
        else DataLoader(Mapped(), case.batch, **options)
    )
    return lambda: consume(iter(loader), lambda b: b[1])


def naive_zarr(case: Case, folder: Path, workers: str) -> Epoch:
    """Return a tenth of an epoch of DataLoader with `array[i]` of Zarr."""
    import zarr
    from torch.utils.data import DataLoader, Dataset, RandomSampler

    arrays = case.arrays(2000)
    group: Any = zarr.open_group(folder / f"{case.name}-naive.zarr", mode="w")
    for name, a in arrays.items():
        group.create_array(name, data=a, chunks=(64, *a.shape[1:]))

    class Rows(Dataset):
        def __len__(self) -> int:
            return len(arrays["label"])

        def __getitem__(self, i: int) -> tuple[Any, int]:
            return group[case.field][i], int(group["label"][i])

    rows = Rows()
    loader = DataLoader(rows, case.batch, sampler=RandomSampler(rows), num_workers=int(workers))
    return lambda: consume(iter(loader), lambda b: b[1])


def stub_torchvision() -> None:
    """Let mosaicml-streaming import without torchvision."""
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    names = ["torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"]
    modules = {name: ModuleType(name) for name in names}
    for name, module in modules.items():
        module.__spec__ = ModuleSpec(name, None)
    vars(modules["torchvision.datasets"])["VisionDataset"] = object
    vars(modules["torchvision.transforms.functional"])["to_tensor"] = None
    sys.modules.update(modules)


def streaming(case: Case, folder: Path, workers: str) -> Epoch:
    """Return an epoch of mosaicml-streaming's StreamingDataset."""
    stub_torchvision()
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    out = folder / f"{case.name}-mds"
    if not out.exists():
        write_streaming(case.arrays(), case, out)
    made = StreamingDataset(local=str(out), shuffle=True, batch_size=case.batch)
    loader = DataLoader(made, batch_size=case.batch, num_workers=int(workers))
    return lambda: consume(iter(loader), lambda b: b["label"])


def write_streaming(arrays: dict[str, np.ndarray], case: Case, out: Path) -> None:
    """Write a case with MDSWriter."""
    stub_torchvision()
    from streaming import MDSWriter

    columns = {case.field: f"ndarray:{case.dtype}:{','.join(map(str, case.shape))}", "label": "int"}
    with MDSWriter(out=str(out), columns=columns) as writer:
        for value, label in zip(arrays[case.field], arrays["label"], strict=True):
            writer.write({case.field: value, "label": int(label)})


def litdata(case: Case, folder: Path, workers: str) -> Epoch:
    """Return an epoch of litdata's StreamingDataLoader."""
    from litdata import StreamingDataLoader, StreamingDataset

    out = folder / f"{case.name}-litdata"
    if not out.exists():
        write_litdata(case.arrays(), case, out)
    loader = StreamingDataLoader(
        StreamingDataset(str(out), shuffle=True, drop_last=True), batch_size=case.batch, num_workers=int(workers)
    )
    return lambda: consume(iter(loader), lambda b: b["label"])


_RECORDS: tuple[dict[str, np.ndarray], str] = ({}, "")


def litdata_record(i: int) -> dict[str, Any]:
    """Return one row, for litdata's workers."""
    arrays, field = _RECORDS
    return {field: arrays[field][i], "label": int(arrays["label"][i])}


def write_litdata(arrays: dict[str, np.ndarray], case: Case, out: Path) -> None:
    """Write a case with litdata.optimize."""
    from litdata import optimize

    global _RECORDS
    _RECORDS = (arrays, case.field)
    optimize(
        litdata_record,
        inputs=list(range(len(arrays["label"]))),
        output_dir=str(out),
        chunk_bytes="64MB",
        num_workers=1,
        start_method="fork",
    )


def webdataset(case: Case, folder: Path, workers: str) -> Epoch:
    """Return an epoch of webdataset, shuffling shards and a buffer."""
    import webdataset as wds

    out = folder / f"{case.name}-wds"
    if not out.exists():
        out.mkdir()
        arrays = case.arrays()
        with wds.ShardWriter(f"{out}/%06d.tar", maxsize=64e6, verbose=0) as sink:
            for i in range(case.rows):
                sink.write({"__key__": f"{i:08d}", "x.npy": arrays[case.field][i], "y.cls": int(arrays["label"][i])})
    shards = [str(p) for p in sorted(out.glob("*.tar"))]
    made = wds.WebDataset(shards, shardshuffle=100, empty_check=False).shuffle(5000).decode().to_tuple("x.npy", "y.cls")
    loader = wds.WebLoader(made.batched(case.batch), batch_size=None, num_workers=int(workers))
    return lambda: consume(iter(loader), lambda b: b[1])


CONTENDERS: dict[str, tuple[Callable[[Case, Path, str], Epoch], list[str], bool]] = {
    "gather from memory, threads": (gather, ["1", str(os.cpu_count())], False),
    "the codec alone": (codec, [""], False),
    "ours, codec": (ours, ["none", "zstd"], False),
    "memmap + DataLoader, by": (memmap, ["samples 0", "samples 2", "batches 0", "batches 2"], False),
    "zarr[i] + DataLoader, workers": (naive_zarr, ["0"], False),
    "mosaicml-streaming, workers": (streaming, ["0", "2"], True),
    "litdata, workers": (litdata, ["0", "2"], True),
    "webdataset, workers": (webdataset, ["0", "2"], True),
}


def measure(contender: str, option: str, case: Case, folder: Path) -> dict[str, float]:
    """Return samples/s (median of epochs), and the growth of peak memory, of one contender in this process."""
    import resource

    make = CONTENDERS[contender][0]
    epoch = make(case, folder, option)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rates: list[float] = []
    began = time.perf_counter()
    while len(rates) < EPOCHS and (len(rates) < 2 or time.perf_counter() - began < 40):
        start = time.perf_counter()
        rows = epoch()
        rates.append(rows / (time.perf_counter() - start))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"rate": statistics.median(rates[1:]), "memory": (after - before) * 1024}


def measure_writing(contender: str, scale: int, folder: Path) -> dict[str, float]:
    """Return GB/s of writing the images, `scale` eighths of them, from memory."""
    case = CASES["images"]
    if contender.startswith("ours"):  # imports are not what is measured
        dataset(replace(case, name="warm-up"), folder / f"warm-{contender}-{scale}", "zstd", InMemory(case, 100))
    source = InMemory(case, case.rows * scale // 8)
    size = sum(a.nbytes for a in source.arrays.values())
    out = folder / f"written-{contender}-{scale}"
    began = time.perf_counter()
    if contender.startswith("ours"):
        dataset(case, out, contender.removeprefix("ours "), source)
    elif contender == "mosaicml-streaming":
        write_streaming(source.arrays, case, out)
    else:
        write_litdata(source.arrays, case, out)
    return {"rate": size / 1e9 / (time.perf_counter() - began)}


def in_process(peers: bool, *arguments: str) -> dict[str, float] | None:
    """Run this script's hidden half in a process of its own, with the peers' interpreter for the peers."""
    python = PEERS / "bin" / "python" if peers else Path(sys.executable)
    done = subprocess.run([str(python), __file__, "--one", *arguments], capture_output=True, text=True, cwd=HOME)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        print(f"  {arguments}: failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return json.loads(lines[-1])


def ensure_peers() -> None:
    """Make the peers' environment; their requirements do not fit beside ours."""
    if (PEERS / "bin" / "python").exists():
        return
    uv = str(HOME / ".venv" / "bin" / "uv")
    links = {**os.environ, "UV_FIND_LINKS": os.environ.get("UV_FIND_LINKS", os.environ.get("PIP_FIND_LINKS", ""))}
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as without:
        without.write("torchvision; sys_platform == 'never'\n")
        without.flush()
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(PEERS)], check=True)
        command = [uv, "pip", "install", "-q", "--python", str(PEERS / "bin/python"), "--override", without.name]
        subprocess.run([*command, *PACKAGES], check=True, env=links)


def main() -> None:
    """Measure everything, and print tables with ratios."""
    parser = argparse.ArgumentParser(description="Measure the loader and the ingest beside limits and peers.")
    parser.add_argument("--one", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    arguments = parser.parse_args()
    if arguments.one:
        kind, *rest = arguments.one
        if kind == "prepare":
            dataset(CASES[rest[0]], Path(rest[2]), rest[1])
        elif kind == "read":
            print(json.dumps(measure(rest[0], rest[1], CASES[rest[2]], Path(rest[3]))))
        else:
            print(json.dumps(measure_writing(rest[0], int(rest[1]), Path(rest[2]))))
        return
    ensure_peers()
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.cases:
            print(f"\n{name}, batch {CASES[name].batch}: samples/s")
            reference: float | None = None
            for contender, (_, options, peers) in CONTENDERS.items():
                for option in options:
                    found = in_process(peers, "read", contender, option, name, folder)
                    if found is None:
                        continue
                    if contender.startswith("ours") and reference is None:
                        reference = found["rate"]
                    ratio = f"ours is {reference / found['rate']:.2f}x" if reference else ""
                    memory = f"{found['memory'] / 1e6:>7.0f} MB" if contender.startswith("ours") else ""
                    print(f"  {contender + ' ' + option:40}{found['rate']:>12,.0f}  {ratio:16}{memory}", flush=True)
        print("\nwriting images from memory: GB/s")
        writers = {"ours none": (1, 8), "ours zstd": (1, 8), "mosaicml-streaming": (8,), "litdata": (2,)}
        for contender, scales in writers.items():
            for scale in scales:
                found = in_process("ours" not in contender, "write", contender, str(scale), folder)
                if found:
                    print(f"  {contender + f', {scale}/8 of the data':40}{found['rate']:>8.3f}", flush=True)


if __name__ == "__main__":
    main()
