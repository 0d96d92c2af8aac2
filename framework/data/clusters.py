"""Dask clusters for an ingest: workers of this machine, SLURM jobs, pods of Kubernetes, or a cluster that runs already.

What leaves the machine is encrypted: workers that are submitted and the scheduler here know each other by certificates
made for this one ingest; a cluster at an address elsewhere must be reached by TLS (`framework.config.rules`).
"""

from __future__ import annotations

import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from framework.config.components import as_plain
from framework.errors import UserError
from framework.record.console import say

if TYPE_CHECKING:
    from distributed import Client
    from distributed.security import Security

ROLES = ("scheduler", "worker", "client")


@contextmanager
def local_cluster(config: DictConfig) -> Iterator[Client]:
    """Yield a client of worker processes on this machine, each of one thread and a limit of memory."""
    from distributed import Client, LocalCluster

    cluster = LocalCluster(
        n_workers=config.workers,
        threads_per_worker=1,
        memory_limit=config.memory_limit,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    )
    with cluster, Client(cluster) as client:
        say(f"  Dask: {config.workers} workers of {config.memory_limit} memory, dashboard {client.dashboard_link}")
        yield client


@contextmanager
def existing_cluster(config: DictConfig) -> Iterator[Client]:
    """Yield a client of the cluster at `address`.

    Raises:
        UserError: when it cannot be reached.
    """
    from distributed import Client
    from distributed.security import Security

    tls = as_plain(config.tls)
    security = Security(require_encryption=True, **{f"tls_{k}": v for k, v in tls.items()}) if tls else None
    try:
        client = Client(config.address, security=security, timeout=30)
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"data.dask.address: the cluster at {config.address} cannot be reached: {error}") from error
    with client:
        say(f"  Dask: {len(client.scheduler_info()['workers'])} workers at {config.address}")
        yield client


@contextmanager
def slurm_cluster(config: DictConfig, shared: Path) -> Iterator[Client]:
    """Yield a client of `workers` SLURM jobs, each a worker of one thread; lost ones are submitted again.

    Args:
        config: `options` go to `dask_jobqueue.SLURMCluster` (queue, account, walltime, job_script_prologue, ...).
        shared: a folder that this machine and the nodes see; keys and logs of the workers lie there for the while.

    Raises:
        UserError: when there is no SLURM here, or it refuses such jobs.
    """
    from dask_jobqueue import SLURMCluster
    from distributed import Client

    if which("sbatch") is None:
        raise UserError("data.cluster: slurm needs `sbatch`, and it is not on PATH; start this on a login node")
    shared.mkdir(parents=True, exist_ok=True)
    options = as_plain(config.options)
    scheduler = {"dashboard_address": "127.0.0.1:0", **options.pop("scheduler_options", {})}
    with tempfile.TemporaryDirectory(prefix=".dask-", dir=shared.resolve()) as folder:
        try:
            cluster = SLURMCluster(
                **{"cores": 1, "processes": 1, "memory": config.memory_limit, "job_name": "ingest", **options},
                security=_certificates(Path(folder)),
                scheduler_options=scheduler,
                local_directory=options.get("local_directory", "/tmp"),
                log_directory=folder,
            )
        except (ValueError, TypeError, OSError) as error:
            raise UserError(f"data.dask.options: {error}") from error
        with cluster, Client(cluster) as client:
            _try_submission(cluster.job_script())
            jobs = f"{config.workers} SLURM jobs of {config.memory_limit} memory"
            say(f"  Dask: {jobs}, dashboard {client.dashboard_link}")
            cluster.adapt(minimum=config.workers, maximum=config.workers)
            yield client


@contextmanager
def kubernetes_cluster(config: DictConfig, shared: Path) -> Iterator[Client]:
    """Yield a client of `workers` pods, each a worker of one thread; lost ones are replaced.

    dask-kubernetes is not used: it neither encrypts nor hands certificates on (2026.3), and wants an operator.

    Args:
        config: `options` are fields of `PodResources`, and `python`, the interpreter in the image, and `host`, the
            address under which pods reach this machine.
        shared: the data root, which pods must see at the same path.

    Raises:
        UserError: when there is no cluster, or it refuses such pods.
    """
    from dask.utils import parse_bytes
    from distributed import Client, LocalCluster
    from distributed.security import Security
    from distributed.utils import get_ip

    from framework.launch.admission import require_admitted
    from framework.launch.connection import Connection
    from framework.launch.pods import PodResources
    from framework.launch.pool import pool_manifests

    options = as_plain(config.options)
    host, python = options.pop("host", None) or get_ip(), options.pop("python", "python")
    memory = str(parse_bytes(config.memory_limit))
    try:
        pods = PodResources(**{"memory": memory, **options, "key": "data.dask.options", "nodes": config.workers})
    except TypeError as error:
        raise UserError(f"data.dask.options: {str(error).partition('() ')[2] or error}") from None
    pods.require_mounted(shared.resolve(), Path.cwd())
    connection = Connection(pods.context, pods.namespace)
    security = Security.temporary()
    cluster = LocalCluster(
        n_workers=0, host=host, security=security, protocol="tls://", dashboard_address="127.0.0.1:0"
    )
    with cluster, Client(cluster) as client:
        name = f"ingest-{secrets.token_hex(4)}"
        worker = [
            python, "-m", "distributed.cli.dask_worker", cluster.scheduler_address, "--nthreads", "1", "--no-nanny",
            "--no-dashboard", "--memory-limit", config.memory_limit, "--local-directory", "/tmp",
            "--death-timeout", "60",
        ]  # fmt: skip
        tls = {"CA_FILE": security.tls_ca_file, "WORKER__CERT": security.tls_worker_cert}
        tls["WORKER__KEY"] = security.tls_worker_key
        known = {f"DASK_DISTRIBUTED__COMM__TLS__{key}": str(text) for key, text in tls.items()}
        known["DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"] = "True"
        job, secret = pool_manifests(name, pods, worker, Path.cwd(), known)
        require_admitted(connection, [job], pods)
        connection.create(secret)
        try:
            connection.adopt(connection.create(job), secret)  # they go together, whatever becomes of this process
            say(f"  Dask: {config.workers} pods of {config.memory_limit} memory, dashboard {client.dashboard_link}")
            yield client
        finally:
            connection.delete(type(job), name)
            connection.delete(type(secret), name)


def _certificates(folder: Path) -> Security:
    """Make a certificate that scheduler, workers and client all show, and know each other by, as files."""
    from distributed.security import Security

    made = Security.temporary()
    files = {}
    for name in ("ca_file", "scheduler_cert", "scheduler_key"):
        files[name] = folder / f"{name}.pem"
        files[name].touch(mode=0o600)
        files[name].write_text(getattr(made, f"tls_{name}"))
    cert, key = str(files["scheduler_cert"]), str(files["scheduler_key"])
    roles = {f"tls_{r}_cert": cert for r in ROLES} | {f"tls_{r}_key": key for r in ROLES}
    return Security(require_encryption=True, tls_ca_file=str(files["ca_file"]), **roles)


def _try_submission(script: str) -> None:
    """Let SLURM judge a job without submitting it."""
    tried = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True, check=False)
    if tried.returncode:
        reason = tried.stderr.strip().removeprefix("allocation failure: ")
        raise UserError(f"data.dask.options: SLURM refuses such jobs: {reason}")
