"""Jobs on this machine: slots, each with its share of cores and GPUs, and processes that need not import anything.

A fork server has imported PyTorch and Lightning once. Each job is a process of its own that is forked from it, with a
session, an environment and a log of its own; it outlives this process, and is found again by the lock it holds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from multiprocessing.util import _run_finalizers  # type: ignore[attr-defined]  # the stubs lack it
from pathlib import Path
from typing import Any

from framework.config.machine import cpu_count, this_machine
from framework.errors import EXIT_FAILED
from framework.record.files import write_json

from .backend import Phase
from .jobs import HANDLE, LOG, Job

ENTRY = "framework.launch.worker:run_job"
PRELOADED = ("framework.launch.preloaded",)
_START_TRIES, _START_WAIT_S = 5, 1.0


class LocalBackend:
    """Runs jobs on this machine; see `Backend`.

    Args:
        slots: how many at once.
        entry: `module:function`, called with a job's folder in its process; returns the exit code.
        preload: modules that the fork server imports before the first job.
        memory_gb: how much memory each process may ask for (Linux's RLIMIT_DATA, some 0.5 GB of which PyTorch takes).
    """

    def __init__(
        self,
        slots: int = 1,
        entry: str = ENTRY,
        preload: Sequence[str] = PRELOADED,
        memory_gb: float | None = None,
    ) -> None:
        self.slots, self.entry = slots, entry
        self._memory = int(memory_gb * 1e9) if memory_gb is not None else None
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*preload])
        self._processes: dict[Path, ForkServerProcess] = {}
        self._places: dict[Path, int] = {}
        self._signals: dict[Path, str] = {}

    def submit(self, job: Job) -> None:
        """Start a job in a slot that is free.

        Raises:
            RuntimeError: when none is.
        """
        taken = {self._places[folder] for folder, process in self._processes.items() if process.is_alive()}
        free = [place for place in range(self.slots) if place not in taken]
        if not free:
            raise RuntimeError(f"all {self.slots} slots are taken")
        place = free[0]
        process = self._start((self.entry, str(job.folder), self._share(place), self._threads, self._memory))
        write_json(
            job.folder / HANDLE,
            {"backend": "local", "host": os.uname().nodename, "pid": process.pid, "slot": place},
            durable=False,
        )
        self._processes[job.folder], self._places[job.folder] = process, place

    def _start(self, arguments: tuple[Any, ...]) -> ForkServerProcess:
        """Fork a process; where the fork server was killed meanwhile, another one is started."""
        for attempt in range(_START_TRIES):
            process = self._context.Process(target=_work, args=arguments, daemon=False)
            try:
                process.start()
            except (EOFError, ConnectionError):
                if attempt == _START_TRIES - 1:
                    raise
                time.sleep(_START_WAIT_S)  # until it is seen to be dead
            else:
                return process
        raise AssertionError("unreachable")

    @property
    def _threads(self) -> int:
        return max(1, cpu_count() // self.slots)

    def _share(self, place: int) -> dict[str, str]:
        """Return the environment that gives a slot its share of the machine."""
        share = {name: str(self._threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        gpus = this_machine().gpus
        if gpus and self.slots > 1:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            names = visible.split(",") if visible else [str(i) for i in range(gpus)]
            each = max(1, gpus // self.slots)
            first = place * each % gpus
            share["CUDA_VISIBLE_DEVICES"] = ",".join(names[first : first + each])
        return share

    def phases(self, jobs: Sequence[Job]) -> list[Phase]:
        """Return where each job is: a process of this backend, or one that holds the job's lock."""
        found = []
        for job in jobs:
            process = self._processes.get(job.folder)
            alive = (process is not None and process.is_alive()) or job.is_held()
            if not alive and process is not None:
                if process.exitcode is not None and process.exitcode < 0:
                    self._signals[job.folder] = signal.Signals(-process.exitcode).name
                self._processes.pop(job.folder).close()
            found.append(Phase.running if alive else Phase.gone)
        return found

    def why_gone(self, job: Job) -> str | None:
        """Return which signal ended a job's process, where one did and that is known."""
        name = self._signals.pop(job.folder, None)
        return f"killed by {name}" if name else None

    def wait(self, seconds: float) -> None:
        """Wait until a process ends, at most so long."""
        wait([process.sentinel for process in self._processes.values()], seconds)

    def stop(self, job: Job) -> None:
        """Signal a job's process."""
        self._signal(job, signal.SIGTERM)

    def kill(self, job: Job) -> None:
        """End a job's process, and those it has started."""
        self._signal(job, signal.SIGKILL, everybody=True)

    def _signal(self, job: Job, number: int, everybody: bool = False) -> None:
        try:
            handle = json.loads((job.folder / HANDLE).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return
        process = self._processes.get(job.folder)
        ours = handle["host"] == os.uname().nodename
        if not ours or not ((process is not None and process.is_alive()) or job.is_held()):
            return
        with suppress(ProcessLookupError, PermissionError):
            (os.killpg if everybody else os.kill)(handle["pid"], number)

    def close(self) -> None:
        """Forget the processes; they go on."""
        self._processes.clear()


def _work(entry: str, folder: str, environment: dict[str, str], threads: int, memory: int | None) -> None:
    """Run a job in this process, which was forked for it."""
    os.setsid()
    with (Path(folder) / LOG).open("ab") as log, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.update(environment)
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)
    module, _, function = entry.partition(":")
    code = EXIT_FAILED
    try:
        code = getattr(import_module(module), function)(Path(folder))
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    _run_finalizers()  # frees semaphores; without waiting for threads, as leaving in the usual way would
    os._exit(code)
