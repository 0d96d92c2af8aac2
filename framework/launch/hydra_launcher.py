"""Hydra's launcher interface over the local backend: any Hydra application's jobs, in processes of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from framework.record.console import say

from .backend import Backend, Phase
from .jobs import Job
from .local import PRELOADED, LocalBackend

_WORK, _RETURN = "work.pkl", "return.pkl"
_POLL_S = 0.2


class LocalLauncher(Launcher):
    """Runs jobs on this machine, `n_jobs` at once.

    Args:
        n_jobs: how many at once, where no sweeper of ours says so.
        memory_gb: how much memory each may ask for.
    """

    def __init__(self, n_jobs: int = 1, memory_gb: float | None = None) -> None:
        self.n_jobs, self.memory_gb = n_jobs, memory_gb
        self._config: DictConfig | None = None
        self._task: TaskFunction | None = None
        self._context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context, self._task, self._config = hydra_context, task_function, config

    def backend(self, slots: int) -> Backend:
        """Return the backend for jobs of this framework; see `Backend`."""
        return LocalBackend(slots, preload=PRELOADED, memory_gb=self.memory_gb)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of any application's jobs; see Hydra's `Launcher`."""
        assert self._context is not None and self._config is not None
        setup_globals()
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        folder = Path(str(self._config.hydra.sweep.dir)) / ".jobs"
        backend = LocalBackend(self.n_jobs, entry=f"{__name__}:run_pickled", preload=(), memory_gb=self.memory_gb)
        jobs, ran = [], dict[Path, JobReturn]()
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            config = self._context.config_loader.load_sweep_config(self._config, list(overrides))
            with open_dict(config):
                config.hydra.job.id, config.hydra.job.num = str(number), number
            say(f"#{number}: {' '.join(filter_overrides(overrides))}")
            job = Job.create(folder / str(number), OmegaConf.create({}), overrides, {})
            work = (self._context, self._task, config, Singleton.get_state())
            (job.folder / _WORK).write_bytes(cloudpickle.dumps(work))
            jobs.append(job)
        waiting, running = list(jobs), list[Job]()
        while waiting or running:
            while waiting and len(running) < backend.slots:
                running.append(waiting.pop(0))
                backend.submit(running[-1])
            backend.wait(_POLL_S)
            for job, phase in zip(list(running), backend.phases(running), strict=True):
                if phase is Phase.gone:
                    running.remove(job)
                    ran[job.folder] = _returned(job, backend.why_gone(job))
        return [ran[job.folder] for job in jobs]


def _returned(job: Job, why: str | None) -> JobReturn:
    try:
        return cloudpickle.loads((job.folder / _RETURN).read_bytes())
    except (OSError, EOFError):
        lost = JobReturn(overrides=job.described["overrides"], status=JobStatus.FAILED)
        lost.return_value = RuntimeError(
            f"the job ended without a word ({why or 'why is unknown'}): {job.last_lines()}"
        )
        return lost


def run_pickled(folder: Path) -> int:
    """Run a job of any Hydra application in this process."""
    work: tuple[HydraContext, TaskFunction, Any, Any] = cloudpickle.loads((folder / _WORK).read_bytes())
    context, task, config, singletons = work
    setup_globals()
    Singleton.set_state(singletons)
    with Job(folder).lock():
        done = run_job(
            hydra_context=context,
            task_function=task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        (folder / f"{_RETURN}.aside").write_bytes(cloudpickle.dumps(done))
        (folder / f"{_RETURN}.aside").replace(folder / _RETURN)
    return 0
