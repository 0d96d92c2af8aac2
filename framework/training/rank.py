"""One rank of a training, as a process of its own: `python -m framework.training.rank RUN FOLDER ALIVE PIPE`.

Started by `team.py`. RUN is the run directory; FOLDER holds what is to be trained; ALIVE is a file descriptor that
ends when the starting process does; to PIPE rank 0 writes metrics.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from framework.config.schema import Config
from framework.errors import EXIT_FAILED, EXIT_PREEMPTED, EXIT_USER, Preempted, UserError, reason_of
from framework.record.console import start_logging
from framework.record.experiment import Experiment
from framework.record.files import write_json
from framework.record.interrupts import INTERRUPTS
from framework.record.run import RunRecord

from .job import Job
from .loop import train
from .team import STEPS, heartbeat
from .workbench import Workbench


def main(run: Path, folder: Path, alive: int, pipe: int) -> int:
    """Train as this rank; returns the exit code."""
    rank = int(os.environ["RANK"])
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()
    ranks = run / "ranks"
    try:
        _train(run, folder, rank, pipe)
        return 0
    except BaseException as error:
        kind = "user" if isinstance(error, UserError) else "preempted" if isinstance(error, Preempted) else "failed"
        said = {"kind": kind, "message": reason_of(error), "time": time.time(), "traceback": traceback.format_exc()}
        write_json(ranks / f"rank_{rank}.json", said)
        return {"user": EXIT_USER, "preempted": EXIT_PREEMPTED}.get(kind, EXIT_FAILED)


def _train(run: Path, folder: Path, rank: int, pipe: int) -> None:
    record = RunRecord(run)
    config = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(run / "config.yaml"))
    assert isinstance(config, DictConfig)
    start_logging(run / "log.txt" if rank == 0 else None)
    job = json.loads((folder / ".job.json").read_text(encoding="utf-8"))
    threads = job.pop("threads")
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # or Lightning sets a number of its own
    bench = Workbench(Experiment(config, record), record["data"]["path"])
    bench.seed(rank // config.strategy.tensor_parallel)  # ranks that share layers draw the same
    model = torch.load(folder / ".start.pt", weights_only=False)

    def log(metrics: dict[str, float], step: int) -> None:
        os.write(pipe, (json.dumps({"metrics": metrics, "step": step}) + "\n").encode())

    fitted = train(bench, model, folder, Job(**job), log, _heartbeat(run / "ranks"))
    if rank == 0:
        write_json(folder / ".result.json", asdict(fitted))


def _heartbeat(ranks: Path) -> Callable[[int], None]:
    return heartbeat(ranks / STEPS.format(node=os.environ["GROUP_RANK"]), int(os.environ["LOCAL_RANK"]))


def _end_with(alive: int) -> None:
    """End this process when the one that started it has ended."""
    os.read(alive, 1)
    os._exit(EXIT_FAILED)


if __name__ == "__main__":
    with INTERRUPTS, INTERRUPTS.deferred():  # to the end: a cluster may signal more than once
        code = main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
        sys.stdout.flush()
        os._exit(code)  # at once: collectives that others have left would hold the interpreter's end up
