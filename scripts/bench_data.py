"""The loader and the ingest beside their limits and their peers, in one sitting.

    .venv/bin/python scripts/bench_data.py            # makes .venv-peers with the peers on first use

Data: 100,000 images of 3x32x32 uint8 with a label, and 100,000 windows of 1,025 uint16 tokens, half of their bits
random; batches of 256 and 32, shuffled. Figures are medians of epochs in samples/s (the page cache is warm), each
contender in a process of its own, one after another. Limits: a gather by random index from one array in memory, on one
thread and on as many as there are cores; the codec alone, decoding the very chunks on the loader's threads. Peers as
their documentation recommends, with 0 and 2 workers; mosaicml-streaming gets an empty stand-in for torchvision, which
it imports and does not use here.

Measured on two cores (a virtual machine, Debian 12), Python 3.11, torch 2.13.0; images and tokens in two sittings:

    samples/s                                       images      tokens
    gather from memory, 1 thread                 1,976,543   2,419,783
    gather from memory, 2 threads                4,137,485   2,814,162
    the codec alone, 2 threads                   1,184,972   1,160,283
    ours, codec none                             1,095,679   1,065,431
    ours, codec zstd                               565,045     617,008
    ours, 8x the images, none / zstd               999,417 /   488,846
    memmap + DataLoader, by samples, 0 / 2 w.      193,194 /   123,550       193,320 / 19,668
    memmap + DataLoader, by batches, 0 / 2 w.    1,372,547 /   182,346       943,062 / 22,456
    zarr[i] + DataLoader                               357         354
    mosaicml-streaming, 0 / 2 workers                9,641 /    17,894         7,546 /  4,150
    litdata, 0 / 2 workers                          87,931 /    20,579       106,648 /  9,328
    webdataset, 0 / 2 workers                        5,863 /     6,049         5,708 /  6,503

    rows sorted by class, chi-square of class counts in batches over that of random ones, median of 5 epochs:
    ours 1.03, mosaicml-streaming 0.99, litdata 252.82, webdataset 94.25

    writing images from memory, GB/s (an earlier sitting): ours 0.46 (none), 0.41 (zstd); MDSWriter 0.036;
    litdata.optimize 0.018
    peak memory above the baseline, window_bytes 32 MiB (so 67 MB are allowed): 58 MB (images), 61 MB (tokens)

So, with crc32c checked on every chunk: 10 to 12 times the best of the three, 5 to 6 times a DataLoader that takes
samples from a memory map, 0.8 to 1.1 of one that takes whole batches from it, without checksums, shards or shuffle
windows. Compressed, 0.48 to 0.53 of what the codec decodes on both cores while nothing else runs; uncompressed, 0.26 to
0.38 of the gather on both cores, 0.44 to 0.55 of that on one.
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
from dataclasses import replace
from pathlib import Path

from data_contenders import CASES, CONTENDERS, Case, InMemory, dataset, dispersion, write_litdata, write_streaming

HOME = Path(__file__).resolve().parent.parent
PEERS = HOME / ".venv-peers"
PACKAGES = ["mosaicml-streaming==0.13.0", "litdata==0.2.76", "webdataset==1.0.2", "torch==2.13.0", "zarr==3.1.6"]
EPOCHS = 5


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
        rows = sum(len(labels) for labels in epoch())
        rates.append(rows / (time.perf_counter() - start))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"rate": statistics.median(rates[1:]), "memory": (after - before) * 1024}


def measure_quality(contender: str, option: str, folder: Path) -> dict[str, float]:
    """Return how much more class counts of batches scatter than those of random ones: median and worst of epochs."""
    case = CASES["sorted"]
    epoch = CONTENDERS[contender][0](case, folder, option)
    found = [dispersion(epoch(), case.batch) for _ in range(EPOCHS)]
    return {"median": statistics.median(found), "worst": max(found, key=lambda x: abs(x - 1))}


def measure_writing(contender: str, scale: float, folder: Path) -> dict[str, float]:
    """Return GB/s of writing the images, `scale` times as many, from memory."""
    case = CASES["images"]
    if contender.startswith("ours"):  # imports are not what is measured
        dataset(replace(case, name="warm-up"), folder / f"warm-{contender}-{scale}", "zstd", InMemory(case, 100))
    source = InMemory(case, int(case.rows * scale), 16)
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
    parser.add_argument("--cases", nargs="*", default=["images", "tokens"], choices=["images", "tokens"])
    arguments = parser.parse_args()
    if arguments.one:
        kind, *rest = arguments.one
        if kind == "prepare":
            dataset(CASES[rest[0]], Path(rest[2]), rest[1])
        elif kind == "read":
            print(json.dumps(measure(rest[0], rest[1], CASES[rest[2]], Path(rest[3]))))
        elif kind == "quality":
            print(json.dumps(measure_quality(rest[0], rest[1], Path(rest[2]))))
        else:
            print(json.dumps(measure_writing(rest[0], float(rest[1]), Path(rest[2]))))
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
        for option in ("none", "zstd"):
            found = in_process(False, "read", "ours, codec", option, "images_8x", folder)
            if found:
                print(f"  {f'ours, codec {option}, 8x the images':40}{found['rate']:>12,.0f}", flush=True)
        print("\nrows sorted by class: chi-square of class counts in batches, over that of random batches (1 is ideal)")
        shuffling = {"ours, codec": "zstd", **{n: o[0] for n, (_, o, peers) in CONTENDERS.items() if peers}}
        for contender, option in shuffling.items():
            quality = in_process("ours" not in contender, "quality", contender, option, folder)
            if quality:
                worst = f"worst of {EPOCHS}: {quality['worst']:.2f}"
                print(f"  {contender:40}{quality['median']:>9.2f}  {worst}", flush=True)
        print("\nwriting images from memory: GB/s")
        writers = {"ours none": (1, 8), "ours zstd": (1, 8), "mosaicml-streaming": (1,), "litdata": (0.25,)}
        for contender, scales in writers.items():
            for scale in scales:
                found = in_process("ours" not in contender, "write", contender, str(scale), folder)
                if found:
                    print(f"  {contender + f', {scale:g}x the data':40}{found['rate']:>8.3f}", flush=True)


if __name__ == "__main__":
    main()
