"""Hydra launchers that send jobs away: what they have in common, SLURM's, Kubernetes'."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from framework.config.components import as_plain
from framework.config.schema import Cluster, Stage
from framework.errors import UserError
from framework.record.console import bytes_text
from framework.record.files import size_of

from .backend import Backend
from .jobs import Job
from .kubernetes import KubernetesBackend
from .pods import PodResources
from .remote import Remote
from .slurm import Resources, SlurmBackend
from .snapshot import Snapshot, take_snapshot

SNAPSHOTS = ".snapshots"


class ClusterBackend(Backend, Protocol):
    """A backend of which jobs outlive whoever submits them."""

    def check(self, title: str, place: Path) -> None:
        """Let the cluster judge such jobs without submitting one; raises UserError when it refuses."""

    def write(self, jobs: Sequence[Job], place: Path, throttle: int | None = None) -> Path:
        """Write what would be submitted; returns where it is."""

    def submit_all(self, jobs: Sequence[Job], place: Path, throttle: int | None = None) -> None:
        """Submit many at once, of which `throttle` run at the same time."""

    def states(self, jobs: Sequence[Job]) -> list[str]:
        """Return the cluster's own words for where each job is; one question for all of them."""


class ClusterLauncher(Launcher):
    """Sends the experiments of this framework to a cluster.

    Args:
        wait: follow what was submitted until it ends; false returns at once, with how to ask after it.
        snapshot: jobs run a copy of the code as it is now; false has them run the folder as it is by then.
        snapshot_mb: how big that may be.
    """

    def __init__(self, wait: bool = True, snapshot: bool = True, snapshot_mb: float = 100) -> None:
        self.wait, self.snapshot, self.snapshot_mb = wait, snapshot, snapshot_mb
        self._taken: Snapshot | None = None
        self._folder = Path.cwd()

    nodes = 1
    gpus_per_node = 0

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's; nothing of it is needed."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Not for other applications: a job here is a config of this framework."""
        raise UserError("hydra/launcher: this one sends experiments of this framework only")

    @abstractmethod
    def backend(self, slots: int, outputs: Path, retries: int | None = None) -> ClusterBackend:
        """Return the backend; snapshots of the code lie below `outputs`; `retries` in place of the launcher's own."""

    def require_fit(self, config: DictConfig) -> None:
        """Make sure that an experiment can run where this sends it.

        Raises:
            UserError: when it cannot.
        """

    @abstractmethod
    def cost(self, jobs: int) -> str:
        """Return one line on what jobs may take at most."""

    def code(self, outputs: Path) -> Snapshot | None:
        """Return the copy of the code, made once."""
        if self._taken is None and self.snapshot:
            self._taken = take_snapshot(outputs / SNAPSHOTS, self.snapshot_mb)
            print(f"code    {self._taken.folder}  ({bytes_text(size_of(self._taken.folder))})")
        return self._taken

    def where(self) -> dict[str, Any]:
        """Return where jobs run, and by which code, as plain values; known once there is a backend."""
        taken = self._taken
        imports = [str(place) for place in taken.imports] if taken else []
        return {"folder": str(self._folder), "snapshot": str(taken.folder) if taken else None, "imports": imports}

    def send_to(self, where: Mapping[str, Any]) -> None:
        """Have jobs run where, and by the code by which, earlier ones did; see `where`."""
        self._folder = Path(where["folder"])
        self.snapshot = where["snapshot"] is not None
        if self.snapshot:
            self._taken = Snapshot(Path(where["snapshot"]), tuple(Path(place) for place in where["imports"]))


class SlurmLauncher(ClusterLauncher):
    """Jobs on SLURM.

    Args:
        partition, account, qos, constraint, reservation, time, nodes, gpus_per_node, cpus_per_node, memory, extra: see
            `Resources`.
        modules: what `module load` is given.
        setup: lines of shell before the worker is started.
        container: the command that starts a process in a container, as in `apptainer exec --nv image.sif`.
        python: the interpreter on the nodes, or in the container; by default this one.
        grace_s, retries, backoff_s: see `SlurmBackend`.
        n_jobs: how many at once, where no sweeper says so.
        **others: see `ClusterLauncher`.
    """

    def __init__(
        self,
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        constraint: str | None = None,
        reservation: str | None = None,
        time: str | int | None = None,
        nodes: int = 1,
        gpus_per_node: int = 0,
        cpus_per_node: int | None = None,
        memory: str | None = None,
        extra: Mapping[str, Any] | None = None,
        modules: Sequence[str] = (),
        setup: Sequence[str] = (),
        container: str | None = None,
        python: str | None = None,
        grace_s: int = 120,
        retries: int = 2,
        backoff_s: int = 10,
        n_jobs: int = 1,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.resources = Resources(
            partition, account, qos, constraint, reservation, time, nodes, gpus_per_node, cpus_per_node, memory,
            as_plain(extra or {}),
        )  # fmt: skip
        self.nodes, self.gpus_per_node, self.n_jobs = nodes, gpus_per_node, n_jobs
        self.modules, self.shell, self.container = list(modules), list(setup), container
        self.python = python or sys.executable
        self.grace_s, self.retries, self.backoff_s = grace_s, retries, backoff_s
        self.resources.options()

    def backend(self, slots: int, outputs: Path, retries: int | None = None) -> ClusterBackend:
        remote = Remote(self.python, self._folder, self.code(outputs), self.modules, self.shell, self.container)
        tries = self.retries if retries is None else retries
        return SlurmBackend(slots, self.resources, remote, self.grace_s, tries, self.backoff_s)

    def cost(self, jobs: int) -> str:
        return self.resources.cost(jobs)


class KubernetesLauncher(ClusterLauncher):
    """Jobs on Kubernetes.

    Args:
        image, namespace, context, nodes, cpus, memory, gpus, gpu_resource, volumes, node_selector, tolerations,
            service_account, priority_class, queue, secrets, environment, user, deadline_s, keep_s: see `PodResources`.
        python: the interpreter in the image.
        kind, runtime, grace_s, retries: see `KubernetesBackend`.
        n_jobs: how many at once, where no sweeper says so.
        **others: see `ClusterLauncher`.
    """

    def __init__(
        self,
        image: str,
        python: str = "python",
        kind: str = "auto",
        runtime: str = "torch-distributed",
        grace_s: int = 120,
        retries: int = 2,
        n_jobs: int = 1,
        wait: bool = True,
        snapshot: bool = True,
        snapshot_mb: float = 100,
        **pods: Any,
    ) -> None:
        super().__init__(wait, snapshot, snapshot_mb)
        self.pods = PodResources(image, **pods)
        self.nodes, self.gpus_per_node, self.n_jobs = self.pods.nodes, self.pods.gpus, n_jobs
        self.python, self.grace_s, self.retries = python, grace_s, retries
        self.kind, self.runtime = kind, runtime

    def backend(self, slots: int, outputs: Path, retries: int | None = None) -> ClusterBackend:
        remote = Remote(self.python, self._folder, self.code(outputs))
        tries = self.retries if retries is None else retries
        backend = KubernetesBackend(slots, self.pods, remote, self.grace_s, tries, self.kind, self.runtime)
        self.kind = backend.workload.kind  # what the cluster has by then may be something else
        return backend

    def require_fit(self, config: DictConfig) -> None:
        root = str(config.data.store.root)
        if "://" not in root:
            self.pods.require_mounted(Path(root).expanduser().resolve())
        if config.data.cluster is Cluster.kubernetes and Stage.prepare in config.stages:
            raise UserError(
                "data.cluster: pods have no rights to start others; ingest from here first (stages=[prepare], without "
                "hydra/launcher), then submit this with data.cluster=local, which finds that done"
            )

    def where(self) -> dict[str, Any]:
        return {**super().where(), "kind": self.kind}

    def send_to(self, where: Mapping[str, Any]) -> None:
        super().send_to(where)
        self.kind = where.get("kind", "job")  # what there was before there were others

    def cost(self, jobs: int) -> str:
        pods = self.pods
        text = f"{jobs:,} {'job' if jobs == 1 else 'jobs'} x {self.nodes} {'pod' if self.nodes == 1 else 'pods'}"
        each = f"{pods.cpus} CPUs, {pods.memory}" + (f", {pods.gpus} GPUs" if pods.gpus else "")
        if pods.deadline_s is None:
            return f"{text} of {each}, without a deadline"
        hours = pods.deadline_s / 3600
        return f"{text} of {each} x {hours:.3g} h = {jobs * self.nodes * hours:.3g} pod hours"


LAUNCHERS: Mapping[str, type[ClusterLauncher]] = {
    "hydra_plugins.framework.SlurmLauncher": SlurmLauncher,
    "hydra_plugins.framework.KubernetesLauncher": KubernetesLauncher,
}
"""By the names under which Hydra knows them."""


def cluster_launcher(node: Mapping[str, Any]) -> ClusterLauncher | None:
    """Return the launcher of a config node, where it is one that sends jobs to a cluster.

    Raises:
        UserError: when it refuses its arguments.
    """
    kind = LAUNCHERS.get(str(node.get("_target_")))
    if kind is None:
        return None
    try:
        return kind(**{k: v for k, v in as_plain(node).items() if k != "_target_"})
    except TypeError as error:
        raise UserError(f"hydra.launcher: {str(error).partition('() ')[2] or error}") from None
