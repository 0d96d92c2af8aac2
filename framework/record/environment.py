"""What a run ran on: interpreter, packages, machine, commit. Never a secret: no environment variables."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SNAPSHOT_VARIABLE = "FRAMEWORK_SNAPSHOT"
"""Names the folder of a job's code, where that is a copy made when it was submitted."""
SNAPSHOT_FILE, SNAPSHOT_DIFF = ".snapshot.json", ".snapshot.diff"

PACKAGES = [
    "torch",
    "pytorch-lightning",
    "torchmetrics",
    "deepspeed",
    "hydra-core",
    "omegaconf",
    "dask",
    "zarr",
    "numpy",
    "optuna",
    "wandb",
    "scikit-learn",
    "onnx",
    "onnxruntime",
    "torch-pruning",
    "torchao",
]


def describe_environment() -> dict[str, Any]:
    """Return python, packages, machine and git state as plain values."""
    return {
        "python": sys.version.split()[0],
        "packages": dict(package_versions()),
        "machine": {
            "platform": platform.platform(),
            "processor": _processor(),
            "cpus": os.cpu_count(),
            "memory_bytes": _memory(),
            "gpus": _gpus(),
        },
        "git": git_state(),
    }


@cache
def package_versions() -> Mapping[str, str]:
    """Return the versions of those packages on which results depend, as installed when this process first asked."""
    return {name: v for name in PACKAGES if (v := _version(name)) is not None}


def git_diff() -> str:
    """Return the uncommitted changes of the code that runs, or an empty string outside of git."""
    if place := os.environ.get(SNAPSHOT_VARIABLE):
        return Path(place, SNAPSHOT_DIFF).read_text(encoding="utf-8")
    return _run("git", "diff", "HEAD", "--no-color") or ""


def git_state() -> dict[str, Any] | None:
    """Return commit of the code that runs, and whether it has changed since; None outside of git."""
    if place := os.environ.get(SNAPSHOT_VARIABLE):
        return json.loads(Path(place, SNAPSHOT_FILE).read_text(encoding="utf-8"))["git"]
    commit = _run("git", "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit.strip(), "dirty": bool((_run("git", "status", "--porcelain") or "").strip())}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _gpus() -> list[str]:
    folder = Path("/proc/driver/nvidia/gpus")
    found = []
    for gpu in sorted(folder.iterdir()) if folder.is_dir() else []:
        for line in (gpu / "information").read_text().splitlines():
            if line.startswith("Model:"):
                found.append(line.partition(":")[2].strip())
    return found


def _run(*command: str) -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
