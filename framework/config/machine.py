"""What this machine has, found without importing torch."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path


def cpu_count() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Machine:
    """Facts that a config's requirements may name as `machine.<fact>`."""

    gpus: int
    cpus: int
    compute_capability: float = 0.0
    nodes: int = 1

    @property
    def accelerator(self) -> str:
        """`cuda` where there is a visible GPU, else `cpu`."""
        return "cuda" if self.gpus else "cpu"


_assumed: list[Machine] = []


def assume_nodes(nodes: int, gpus: int, compute_capability: float = 8.0) -> None:
    """Have `this_machine` answer for nodes with that many GPUs each, to which what is checked will be sent."""
    _assumed[:] = [Machine(gpus, cpu_count(), compute_capability if gpus else 0.0, nodes)]
    this_machine.cache_clear()


@cache
def this_machine() -> Machine:
    """Return the facts of the machine this process runs on, or of the one that is assumed."""
    if _assumed:
        return _assumed[0]
    devices = [p for p in Path("/dev").glob("nvidia[0-9]*") if p.name[6:].isdigit()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = len(devices) if visible is None else min(len(devices), len([v for v in visible.split(",") if v.strip()]))
    return Machine(gpus=gpus, cpus=cpu_count(), compute_capability=_compute_capability() if gpus else 0.0)


def _compute_capability() -> float:
    """Return the least compute capability of this machine's GPUs, as the driver's tool says; 0 where there is none."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        return min(float(line) for line in said.split())
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0.0


@cache
def has_package(name: str) -> bool:
    """Return whether a top-level package can be imported, without importing it."""
    return find_spec(name) is not None
