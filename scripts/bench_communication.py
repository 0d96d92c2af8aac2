"""How many bytes ranks send each other in a step, beside what the method's paper says.

    .venv/bin/python scripts/bench_communication.py

Counted where they pass: in the loopback interface of this machine (packets' headers included), over 20 steps in the
middle of a training in float32, on two and four processes; nothing else should use the interface. P is the model's
parameters in bytes, N the number of processes; for one process: data parallel sends 2 P (N-1)/N (a ring all-reduce), as
do ZeRO 1 and 2 (reduce-scatter, all-gather; Rajbhandari et al., 2020); ZeRO 3 and FSDP send 3 P (N-1)/N (parameters are
gathered for the forward and for the backward pass).

Measured on two cores, torch 2.13.0 with gloo, DeepSpeed 0.19.8, a ViT of 1.8 million parameters:

    strategy            N   MB a step   formula   ratio
    ddp                 2        7.14      7.11    1.00
    ddp                 4       10.69     10.66    1.00
    fsdp2               2       14.25     10.66    1.34
    fsdp2               4       21.47     15.99    1.34
    deepspeed_zero1     2       10.70      7.11    1.51
    deepspeed_zero1     4       16.03     10.66    1.50
    deepspeed_zero2     2       10.70      7.11    1.50
    deepspeed_zero2     4       16.03     10.66    1.50
    deepspeed_zero3     2       10.70     10.66    1.00
    deepspeed_zero3     4       16.06     15.99    1.00

Where the ratio is more than 1, gloo does an all-reduce in the place of a reduce-scatter, which is twice the bytes: 4/3
of FSDP's three parts, 3/2 of ZeRO 1's and 2's two.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LambdaLR

from framework.training import schedules

HOME = Path(__file__).resolve().parent.parent
FIRST, LAST = 10, 30
FACTOR = {"ddp": 2, "fsdp2": 3, "deepspeed_zero1": 2, "deepspeed_zero2": 2, "deepspeed_zero3": 3}
TRAINING = (
    "model=vit", "model.dropout=0", "model.width=192", "model.depth=4", "stages=[prepare,train]",
    "trainer.max_steps=40", "trainer.max_epochs=-1", "trainer.validate_every_n_steps=1000000",
    "trainer.log_every_n_steps=1000000", "trainer.threads=1", "scheduler._target_=bench_communication.cosine",
)  # fmt: skip


class Counted(LambdaLR):
    """A schedule that writes down, on rank 0, how many bytes have passed at two steps."""

    def step(self, epoch: int | None = None) -> None:
        super().step(epoch)
        if self.last_epoch in (FIRST, LAST) and os.environ["RANK"] == "0":
            line = next(x for x in Path("/proc/net/dev").read_text().splitlines() if x.strip().startswith("lo:"))
            with Path(os.environ["COUNTS"]).open("a") as file:
                file.write(line.split()[9] + "\n")


def cosine(optimizer: torch.optim.Optimizer, steps: int, warmup: float = 0.05, final: float = 0.0) -> LambdaLR:
    """Return `framework.training.schedules.cosine`, which counts."""
    return Counted(optimizer, schedules.cosine(optimizer, steps, warmup, final).lr_lambdas)


def measure(strategy: str, processes: int, work: Path) -> tuple[float, int]:
    """Return the bytes that one process sends in a step, and the bytes of the model's parameters."""
    run, counts = work / f"{strategy}-{processes}", work / f"{strategy}-{processes}.txt"
    places = (f"outputs={work}", f"run_dir={run}")
    command = [sys.executable, "run.py", *TRAINING, *places, f"strategy={strategy}", f"strategy.devices={processes}"]
    environment = {**os.environ, "PYTHONPATH": str(HOME / "scripts"), "COUNTS": str(counts)}
    subprocess.run(command, cwd=HOME, env=environment, check=True, capture_output=True)
    first, last = (int(line) for line in counts.read_text().split())
    parameters = json.loads((run / "run.json").read_text())["metrics"]["model/parameters"]
    return (last - first) / (LAST - FIRST) / processes, 4 * parameters


def main() -> None:
    """Measure every strategy, and print a table."""
    print(f"{'strategy':18}{'N':>3}{'MB a step':>12}{'formula':>10}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as work:
        for strategy, factor in FACTOR.items():
            for processes in (2, 4):
                sent, size = measure(strategy, processes, Path(work))
                formula = factor * size * (processes - 1) / processes
                ratio = sent / formula
                print(f"{strategy:18}{processes:>3}{sent / 1e6:>12.2f}{formula / 1e6:>10.2f}{ratio:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
