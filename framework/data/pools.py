"""Where the partitions of an ingest run: Dask's threads or processes here, or a `distributed` cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from omegaconf import DictConfig

from framework.record.console import progress

from .clusters import existing_cluster, kubernetes_cluster, local_cluster, slurm_cluster

if TYPE_CHECKING:
    from distributed import Client

Call = tuple[Any, ...]


class Pool(Protocol):
    """Calls a function many times, side by side."""

    def run(self, function: Callable[..., Any], calls: Sequence[Call], what: str, unit: str) -> list[Any]:
        """Return what each call returned, in order, showing progress as `what`: so many `unit`.

        The first error ends it; function and arguments must be picklable.
        """


@dataclass(frozen=True)
class LocalPool:
    """Dask in this process.

    Args:
        scheduler: `threads`, `processes` or `synchronous`.
        workers: how many calls at once.
    """

    scheduler: str = "threads"
    workers: int = 2

    def run(self, function: Callable[..., Any], calls: Sequence[Call], what: str, unit: str) -> list[Any]:
        import dask
        from dask.callbacks import Callback

        make = dask.delayed(function, pure=False)
        tasks = [make(*call) for call in calls]
        names = {task.key for task in tasks}
        options: dict[str, Any] = {"scheduler": self.scheduler}
        if self.scheduler != "synchronous":
            options["num_workers"] = self.workers
        with progress(what, len(tasks), unit) as advance:

            def finished(key: Any, *_: Any) -> None:
                if key in names:
                    advance()

            with Callback(posttask=finished):
                return list(dask.compute(*tasks, optimize_graph=False, **options))


@dataclass(frozen=True)
class DistributedPool:
    """A `distributed` cluster, which starts a call again when its worker dies.

    Args:
        client: connected to it.
    """

    client: Client

    def run(self, function: Callable[..., Any], calls: Sequence[Call], what: str, unit: str) -> list[Any]:
        from distributed import as_completed

        futures = [self.client.submit(function, *call, pure=False) for call in calls]
        with progress(what, len(futures), unit) as advance:
            for future in as_completed(futures):
                future.result()
                advance()
        return [future.result() for future in futures]


@contextmanager
def open_pool(data: DictConfig, shared: Path) -> Iterator[Pool]:
    """Yield the pool that `data.cluster` and `data.dask` describe, and close it.

    Args:
        data: a `data` node.
        shared: a folder that all machines of a cluster see.

    Raises:
        UserError: when a cluster cannot be had.
    """
    cluster, config, scheduler = data.cluster.value, data.dask, data.dask.scheduler.value
    if cluster == "slurm":
        with slurm_cluster(config, shared) as client:
            yield DistributedPool(client)
    elif cluster == "kubernetes":
        with kubernetes_cluster(config, shared) as client:
            yield DistributedPool(client)
    elif scheduler != "distributed":
        yield LocalPool(scheduler, config.workers)
    else:
        with existing_cluster(config) if config.address else local_cluster(config) as client:
            yield DistributedPool(client)
