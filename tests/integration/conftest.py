"""One whole run of the main recipe, as a user starts it, that several tests look at."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import pytest
from filelock import FileLock

from framework.record.run import RunRecord
from tests.conftest import HOME

TRAINING = ("compress=none", "export=none", "stages=[prepare,train,evaluate]", "model.widths=[8,16]",
            "trainer.threads=1")  # fmt: skip
"""The digits, trained as small as can be."""
LONG = (
    "trainer.max_epochs=50", "trainer.validate_every_n_steps=25", "model._target_=tests.patient.PatientCNN",
    "+model.pause_s=0.06",
)  # fmt: skip
"""Long enough to be disturbed: a minute, of 950 steps."""


def need(program: str) -> str:
    """Return the path of a program; without it the test fails in CI, and is skipped elsewhere."""
    path = shutil.which(program)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{program} is not installed")
        pytest.skip(f"{program} is not installed")
    return path


@dataclass(frozen=True)
class Whole:
    """A finished run: where runs lie, its record, and what the terminal showed."""

    outputs: Path
    record: RunRecord
    terminal: str


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Run `python run.py` once for all tests of a session, with one thread so that it can be repeated exactly."""
    outputs = _shared(tmp_path_factory) / "whole"
    terminal = _run_once(outputs, [f"outputs={outputs}", "trainer.threads=1"])
    return Whole(outputs, RunRecord(outputs / "latest"), terminal)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real SLURM of four virtual nodes on loopback; yields the folder of its configuration, logs and state."""
    with running_slurm(tmp_path_factory.mktemp("slurm")) as folder:
        yield folder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The metrics of the training `LONG` of two ranks on this machine, that nobody disturbs."""
    outputs = _shared(tmp_path_factory) / "undisturbed"
    training = ["recipe=digits", *TRAINING, *LONG, "model.pause_s=0", "strategy=ddp", "strategy.devices=2"]
    _run_once(outputs, [*training, f"outputs={outputs}"])
    return RunRecord(outputs / "latest").metrics


def _shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all processes of a test session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def _run_once(outputs: Path, arguments: Sequence[str]) -> str:
    """Run `python run.py`, unless another process of the session has; returns what the terminal showed."""
    terminal = outputs.with_suffix(".txt")
    with FileLock(outputs.with_suffix(".lock")):
        if not terminal.exists():
            command = [sys.executable, "run.py", *arguments]
            done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stdout + done.stderr
            terminal.write_text(done.stdout)
    return terminal.read_text()


@contextmanager
def running_slurm(folder: Path, **environment: str) -> Iterator[Path]:
    """Run a SLURM of four nodes, and point this process and its children at it."""
    for program in ("slurmctld", "slurmd", "sbatch", "munged"):
        need(program)
    script, before = str(HOME / "scripts" / "slurm_local"), os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        up = subprocess.run(
            [script, "up", str(folder), "4"],
            env={**os.environ, "SLURM_PORT": str(free_ports(20)), **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert up.returncode == 0, up.stdout + up.stderr
        yield folder
    finally:
        subprocess.run([script, "down", str(folder)], check=True)
        os.environ.pop("SLURM_CONF") if before is None else os.environ.update(SLURM_CONF=before)


def free_ports(count: int) -> int:
    """Return the first of so many neighbouring ports that are free, below those that connections are given."""
    while True:
        first = random.Random().randrange(15_000, 32_000)  # of its own seed: tests set that of all
        with ExitStack() as probes, suppress(OSError):
            for port in range(first, first + count):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


@contextmanager
def s3_server(bucket: str) -> Iterator[None]:
    """Run a real S3-speaking server on loopback with an empty bucket, and point this process and its children at it."""
    import s3fs
    from moto.server import ThreadedMotoServer

    from framework.data.files import file_system

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urlopen(f"http://{host}:{port}/moto-api/reset", data=b"", timeout=10).close()  # its state is the process's
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    s3fs.S3FileSystem.clear_instance_cache()
    file_system.cache_clear()
    try:
        s3fs.S3FileSystem().mkdir(bucket)
        yield
    finally:
        server.stop()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        s3fs.S3FileSystem.clear_instance_cache()
        file_system.cache_clear()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real PostgreSQL on loopback with an empty database; yields its URL."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    folder = programs[-1] if programs else Path(need("pg_ctl")).parent
    place = tmp_path_factory.mktemp("postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    before: list[str] = []
    if os.geteuid() == 0:  # it refuses to run as root
        for path in (place, *place.parents):
            if path.owner() == "root" and path != Path("/"):
                path.chmod(path.stat().st_mode | 0o011)
        shutil.chown(place, "postgres")
        before = ["runuser", "-u", "postgres", "--"]
    data, options = place / "data", f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={place}"
    create = [*before, str(folder / "initdb"), "-D", str(data), "-A", "trust", "-U", "sweeper"]
    subprocess.run(create, check=True, capture_output=True, cwd=place)
    control = [*before, str(folder / "pg_ctl"), "-D", str(data), "-w"]
    subprocess.run(
        [*control, "-o", options, "-l", str(place / "log"), "start"], check=True, stdout=subprocess.DEVNULL, cwd=place
    )
    try:
        yield f"postgresql://sweeper@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL, cwd=place)
