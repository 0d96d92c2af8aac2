"""Where the partitions of an ingest run: Dask's threads or processes here, or a `distributed` cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from omegaconf import DictConfig

from framework.config.components import as_plain
from framework.errors import UserError
from framework.record.console import progress, say

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
def open_pool(config: DictConfig) -> Iterator[Pool]:
    """Yield the pool that a `data.dask` node describes, and close it.

    Raises:
        UserError: when a cluster cannot be reached.
    """
    if config.scheduler.value != "distributed":
        yield LocalPool(config.scheduler.value, config.workers)
        return
    from distributed import Client, LocalCluster
    from distributed.security import Security

    if config.address is None:
        cluster = LocalCluster(
            n_workers=config.workers,
            threads_per_worker=1,
            memory_limit=config.memory_limit,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        )
        with cluster, Client(cluster) as client:
            say(f"  Dask: {config.workers} workers of {config.memory_limit} memory, dashboard {client.dashboard_link}")
            yield DistributedPool(client)
        return
    tls = as_plain(config.tls)
    security = Security(require_encryption=True, **{f"tls_{k}": v for k, v in tls.items()}) if tls else None
    try:
        client = Client(config.address, security=security, timeout=30)
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"data.dask.address: the cluster at {config.address} cannot be reached: {error}") from error
    with client:
        say(f"  Dask: {len(client.scheduler_info()['workers'])} workers at {config.address}")
        yield DistributedPool(client)
