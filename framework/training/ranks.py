"""Training on several ranks, for the process that holds the run record (see `team.py` for theirs)."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from framework.config.machine import cpu_count
from framework.record.files import write_json
from framework.record.interrupts import INTERRUPTS

from .blocks import tensor_parallel_plan
from .checkpoints import load_best
from .job import Fitted, Job, LogMetrics
from .team import Place, Team
from .workbench import Workbench


def train_on_ranks(bench: Workbench, model: nn.Module, folder: Path, job: Job, log: LogMetrics) -> Fitted:
    """Train a model on `strategy.devices` processes of each node; on return it holds the best weights.

    Raises:
        Preempted: when a signal to this process or to any rank asked to stop; the state is saved.
        UserError: what the user can mend, as the rank said it.
        RankFailed: anything else, with the traceback of the rank that failed first.
    """
    cfg = bench.config
    place = Place.of_first(cfg.strategy.num_nodes)
    if cfg.strategy.tensor_parallel > 1:
        tensor_parallel_plan(model)
    folder.mkdir(parents=True, exist_ok=True)
    start = folder / ".start.pt"
    torch.save(model, start)
    write_json(folder / ".job.json", {**asdict(job), "threads": _threads(bench)})
    ranks = bench.experiment.folder / "ranks"
    shutil.rmtree(ranks, ignore_errors=True)
    ranks.mkdir()
    result = folder / ".result.json"
    result.unlink(missing_ok=True)
    try:
        with _pipe(log) as pipe, INTERRUPTS.deferred():
            team = Team(
                cfg.strategy.devices,
                ranks,
                [str(bench.experiment.folder), str(folder)],
                pipe,
                cfg.trainer.hang_s,
                place,
            )
            with team:
                team.watch()
        load_best(model, folder)
        return Fitted(**json.loads(result.read_text(encoding="utf-8")))
    finally:
        for file in (start, folder / ".job.json", result):
            file.unlink(missing_ok=True)


def _threads(bench: Workbench) -> int:
    wanted: int | None = bench.config.trainer.threads
    return wanted or max(1, cpu_count() // int(bench.config.strategy.devices))


@contextmanager
def _pipe(log: LogMetrics) -> Iterator[int]:
    """Yield a file descriptor; the metrics that rank 0 writes to it, a line of JSON each, are logged."""
    reading, writing = os.pipe()
    failed: list[Exception] = []

    def hand_on() -> None:
        with os.fdopen(reading, encoding="utf-8") as lines:
            for line in lines:
                said = json.loads(line)
                try:
                    if not failed:
                        log(said["metrics"], said["step"])
                except Exception as error:  # reading goes on, or rank 0 would wait for ever
                    failed.append(error)

    thread = threading.Thread(target=hand_on, name="metrics")
    thread.start()
    try:
        yield writing
    finally:
        os.close(writing)
        thread.join()
    if failed:
        raise failed[0]
