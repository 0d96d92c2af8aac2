"""The interpolations that configs may use beside OmegaConf's own (`oc.*`)."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable
from typing import Any

from omegaconf import OmegaConf


def stdlib_folder() -> str:
    """Return the folder of this interpreter's standard library sources."""
    return sysconfig.get_paths()["stdlib"]


def cpu_count() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def register_resolvers() -> None:
    """Register `${stdlib:}`, `${cpus:}`, `${len:list}`, `${sum:a,b}`, `${mul:a,b}` and `${div:a,b}` (whole numbers)."""
    functions: dict[str, Callable[..., Any]] = {
        "stdlib": stdlib_folder,
        "cpus": cpu_count,
        "len": len,
        "sum": lambda a, b: a + b,
        "mul": lambda a, b: a * b,
        "div": lambda a, b: a // b,
    }
    for name, function in functions.items():
        OmegaConf.register_new_resolver(name, function, replace=True)
