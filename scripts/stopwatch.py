"""A model that notes when its code began; for measuring what comes before."""

from __future__ import annotations

import os
import time
from pathlib import Path

from framework.models.mlp import MLP

with Path(os.environ.get("STOPWATCH", os.devnull)).open("a") as _file:
    _file.write(f"{time.time()}\n")


class timed_mlp(MLP):
    """The MLP; that this module is imported is what is timed."""
