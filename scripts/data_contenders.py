"""What `bench_data.py` measures: this loader, its limits and its peers, each as a function that runs one epoch.

A contender is a function (case, folder, option) -> epoch; an epoch reads all samples and yields the labels of each
batch. The peers' packages are imported inside, for they live in an environment of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

BENCH = Path(__file__).with_name("bench_data.py")
CLASSES = 10


@dataclass(frozen=True)
class Case:
    """What is read: the field, its shape and dtype, the batch; labels are random, or sorted to see shuffling work."""

    name: str
    field: str
    shape: tuple[int, ...]
    dtype: str
    batch: int
    rows: int
    sorted_labels: bool = False

    def arrays(self, rows: int | None = None) -> dict[str, np.ndarray]:
        """Return the data: values of which half the bits are random."""
        rng = np.random.default_rng(0)
        size = (rows or self.rows, *self.shape)
        values = rng.integers(0, 256, size, dtype=np.uint8) & 0xF0
        labels = rng.integers(0, CLASSES, len(values)).astype(np.int64)
        return {self.field: values.astype(self.dtype), "label": np.sort(labels) if self.sorted_labels else labels}


CASES = {
    "images": Case("images", "image", (3, 32, 32), "uint8", 256, 100_000),
    "tokens": Case("tokens", "tokens", (1025,), "uint16", 32, 100_000),
    "images_8x": Case("images_8x", "image", (3, 32, 32), "uint8", 256, 800_000),
    "sorted": Case("sorted", "image", (3, 16, 16), "uint8", 256, 50_000, sorted_labels=True),
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


Epoch = Callable[[], Iterator[Any]]


def of_each(batches: Iterable[Any], labels: Callable[[Any], Any]) -> Iterator[Any]:
    """Yield the labels of each batch."""
    return (labels(batch) for batch in batches)


def dispersion(batches: Iterator[Any], size: int) -> float:
    """Return Pearson's chi-square of class counts in full batches, over its mean for batches drawn at random (so 1)."""
    full = [np.asarray(labels) for labels in batches if len(labels) == size]
    counts = np.stack([np.bincount(labels, minlength=CLASSES) for labels in full])
    expected = size * counts.sum(axis=0) / counts.sum()
    return float((np.square(counts - expected) / expected).sum() / ((len(full) - 1) * (CLASSES - 1)))


def ours(case: Case, folder: Path, codec: str) -> Epoch:
    """Return an epoch of ShardLoader."""
    from framework.data.loader import ShardLoader

    subprocess.run([sys.executable, str(BENCH), "--one", "prepare", case.name, codec, str(folder)], check=True)
    loader = ShardLoader(dataset(case, folder, codec), "train", case.batch)
    return lambda: of_each(loader, lambda b: b["label"])


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

    def epoch() -> Iterator[Any]:
        order = torch.randperm(case.rows)
        batches = ({n: a.index_select(0, part) for n, a in arrays.items()} for part in order.split(case.batch))
        return of_each(batches, lambda b: b["label"])

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

    def epoch() -> Iterator[Any]:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
        yield range(case.rows)

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
    return lambda: of_each(loader, lambda b: b[1])


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
    return lambda: of_each(loader, lambda b: b[1])


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
    return lambda: of_each(loader, lambda b: b["label"])


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
    return lambda: of_each(loader, lambda b: b["label"])


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
    return lambda: of_each(loader, lambda b: b[1])


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
