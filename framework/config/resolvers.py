"""The interpolations that configs may use beside OmegaConf's own (`oc.*`)."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from typing import Any

from omegaconf import OmegaConf

from .machine import cpu_count, this_machine


def stdlib_folder() -> str:
    """Return the folder of this interpreter's standard library sources."""
    return sysconfig.get_paths()["stdlib"]


def rank_count() -> int:
    """Return how many processes train together by default: one for each GPU here, two where there are fewer."""
    return max(2, this_machine().gpus)


def register_resolvers() -> None:
    """Register `${stdlib:}`, `${cpus:}`, `${ranks:}`, `${len:list}`, and `${sum:a,b}`, `${mul:a,b}`, `${div:a,b}`."""
    functions: dict[str, Callable[..., Any]] = {
        "stdlib": stdlib_folder,
        "cpus": cpu_count,
        "ranks": rank_count,
        "len": len,
        "sum": lambda a, b: a + b,
        "mul": lambda a, b: a * b,
        "div": lambda a, b: a // b,
    }
    for name, function in functions.items():
        OmegaConf.register_new_resolver(name, function, replace=True)
