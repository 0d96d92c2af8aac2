"""How fast models are: latency and throughput, each in its runtime's own process, all in one sitting."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from framework.record.console import progress
from framework.training.workbench import Workbench

from .process import RuntimeProcess
from .verification import model_inputs

ROUNDS = 3
EAGER = "eager"


def time_all(
    bench: Workbench, processes: Mapping[str, RuntimeProcess], sizes: Sequence[int], seconds: float
) -> dict[str, float]:
    """Time all runtimes in turns, so that what else the machine does meets them alike.

    Args:
        bench: whose test split gives the inputs.
        processes: by the prefix of their metrics; `eager` is what the others are compared with.
        sizes: of batches.
        seconds: how long each runtime is timed with each size.

    Returns:
        median, p90 and p99 of a call in milliseconds, rows a second, and how much faster than eager.
    """
    batch = next(iter(bench.eval_loader("test")))
    latencies: dict[tuple[str, int], list[float]] = {(n, s): [] for n in processes for s in sizes}
    with progress("timing", ROUNDS * len(latencies), "measurements") as advance:
        for _ in range(ROUNDS):
            for (name, rows), found in latencies.items():
                found += processes[name].time(model_inputs(bench.task.inputs, batch, rows), seconds / ROUNDS)
                advance()
    metrics: dict[str, float] = {}
    for (name, rows), found in latencies.items():
        median, of_hundred = statistics.median(found), statistics.quantiles(found, n=100, method="inclusive")
        metrics[f"{name}/latency_ms_b{rows}"] = median
        metrics[f"{name}/latency_p90_ms_b{rows}"] = of_hundred[89]
        metrics[f"{name}/latency_p99_ms_b{rows}"] = of_hundred[98]
        metrics[f"{name}/rows_per_s_b{rows}"] = rows * 1e3 * len(found) / sum(found)
        if name != EAGER:
            metrics[f"{name}/speedup_b{rows}"] = statistics.median(latencies[EAGER, rows]) / median
    return metrics
