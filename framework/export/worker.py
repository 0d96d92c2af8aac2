"""A process that holds one exported model in its own runtime, and nothing of the framework's training.

Started by `framework.export.process`; it reads one JSON request a line from standard input and answers with one
JSON line. Arrays travel as files.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from framework.config.components import build

from .targets import Predict

WARM_UP_S, WARM_UP_CALLS = 0.1, 5


def main() -> None:
    """Load the model that the first request describes, then answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    predict: Predict | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "load":
                target = build(request["node"], request["key"])
                predict = target.load(Path(request["folder"]), request["threads"])
                answer: dict[str, Any] = {}
            else:
                assert predict is not None
                answer = _answer(predict, request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(predict: Predict, request: dict[str, Any]) -> dict[str, Any]:
    with np.load(request["inputs"]) as stored:
        arrays = [stored[name] for name in stored.files]
    if request["do"] == "run":
        np.save(request["outputs"], predict(arrays))
        return {}
    if request["do"] == "memory":
        predict(arrays)
        return {"bytes": _peak_memory()}
    return {"latencies_ms": measure(predict, arrays, request["seconds"])}


def _peak_memory() -> int:
    """Return the most bytes this process has had (getrusage would count what its parent had before it)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def measure(predict: Predict, arrays: Sequence[np.ndarray], seconds: float) -> list[float]:
    """Return the milliseconds of each call made in about `seconds`, after a warm-up."""
    clock = time.perf_counter
    end = clock() + WARM_UP_S
    calls = 0
    while calls < WARM_UP_CALLS or clock() < end:
        predict(arrays)
        calls += 1
    latencies: list[float] = []
    end = clock() + seconds
    while len(latencies) < WARM_UP_CALLS or clock() < end:
        began = clock()
        predict(arrays)
        latencies.append((clock() - began) * 1e3)
    return latencies


if __name__ == "__main__":
    main()
