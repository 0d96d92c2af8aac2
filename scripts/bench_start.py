"""How long it takes to begin, beside what the libraries themselves cost to import, in one sitting.

    .venv/bin/python scripts/bench_start.py

Every line is a process of its own, started in turns; the figures are medians, and their ratios to
`import torch, pytorch_lightning`. "First training step" is the time from the start of `python run.py` on prepared
data until the first step's loss stands in metrics.csv.

Measured on two cores (a virtual machine, Debian 12), Python 3.11, torch 2.13.0, pytorch-lightning 2.6.6:

                                          median s   ratio
    import torch, pytorch_lightning           5.09    1.00
    compose: run.py --cfg job                 0.47    0.09
    check: run.py check=true                  0.78    0.15
    list: -m framework runs                   0.25    0.05
    first training step                       5.10    1.00
    first training step of two ranks          8.28    1.63
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
REFERENCE = "import torch, pytorch_lightning"
TWO = ("strategy=ddp", "strategy.devices=2")


def seconds_of(*arguments: str) -> float:
    """Return how long a Python process takes from start to end."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=HOME, check=True, capture_output=True)
    return time.perf_counter() - began


def seconds_to_first_step(outputs: Path, *overrides: str) -> float:
    """Return the time from the start of `run.py` until the first step's metrics are on disk."""
    folder = outputs / "runs" / str(time.monotonic_ns())
    arguments = ["stages=[prepare,train]", "trainer.max_steps=3", "trainer.log_every_n_steps=1", "compress=none"]
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "run.py", f"outputs={outputs}", f"run_dir={folder}", *arguments, *overrides],
        cwd=HOME,
        stdout=subprocess.DEVNULL,
    )
    metrics = folder / "metrics.csv"
    while not (metrics.exists() and "train/loss" in metrics.read_text()):
        if process.poll() not in (None, 0):
            raise RuntimeError("the run failed")
        time.sleep(0.005)
    found = time.perf_counter() - began
    process.wait()
    return found


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="Measure how long it takes to begin.")
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder)
        cases: dict[str, Callable[[], float]] = {
            REFERENCE: lambda: seconds_of("-c", REFERENCE),
            "compose: run.py --cfg job": lambda: seconds_of("run.py", "--cfg", "job"),
            "check: run.py check=true": lambda: seconds_of("run.py", "check=true"),
            "list: -m framework runs": lambda: seconds_of("-m", "framework", "runs", f"--outputs={outputs}"),
            "first training step": lambda: seconds_to_first_step(outputs),
            "first training step of two ranks": lambda: seconds_to_first_step(outputs, *TWO),
        }
        seconds_to_first_step(outputs)  # prepares the data, warms the page cache
        found: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(rounds):
            for name, case in cases.items():
                found[name].append(case())
    reference = statistics.median(found[REFERENCE])
    print(f"{'':36}{'median s':>10}{'ratio':>8}")
    for name, values in found.items():
        median = statistics.median(values)
        print(f"{name:36}{median:>10.2f}{median / reference:>8.2f}")


if __name__ == "__main__":
    main()
