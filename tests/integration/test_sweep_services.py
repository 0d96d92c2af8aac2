"""Sweeps with real storage servers, a dashboard, and other people's launchers."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import optuna
import pytest

from framework.record.catalogue import find_runs
from framework.sweep.storage import open_storage
from tests.conftest import Command

pytestmark = pytest.mark.integration
SMALL = [
    "-m",
    "stages=[prepare,train]",
    "trainer.max_epochs=1",
    "model.widths=[8]",
    "compress=none",
    "trainer.threads=1",
]
SWEEP = [*SMALL, "hydra/sweeper=optuna", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "hydra.sweeper.n_jobs=2"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(*command: str, port: int) -> Iterator[None]:
    """Run a server until it is no longer needed."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()


def states(storage: str, name: str) -> list[str]:
    return [t.state.name for t in optuna.load_study(study_name=name, storage=open_storage(storage)).trials]


def test_two_machines_share_a_study_in_postgresql_and_the_dashboard_shows_it(
    command: Command, outputs: Path, postgres: str
) -> None:
    shared = [
        *SWEEP,
        "hydra.sweeper.n_trials=8",
        f"hydra.sweeper.storage='{postgres}'",
        "hydra.sweeper.study_name=shared",
    ]
    with ThreadPoolExecutor() as pool:
        one, other = (pool.submit(command, *shared, f"outputs={outputs}/{n}") for n in (1, 2))
    for done in (one.result(), other.result()):
        assert done.returncode == 0, done.stdout + done.stderr
    found = states(postgres, "shared")
    assert found.count("COMPLETE") == len(found)
    assert 8 <= len(found) <= 9  # both may ask for the last at the same moment
    runs = [len(find_runs(outputs / str(n))) for n in (1, 2)]
    assert sum(runs) == len(found)
    assert min(runs) >= 1
    port = free_port()
    with running("-m", "optuna_dashboard._cli", postgres, "--port", str(port), port=port):
        shown = json.load(urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=30))
        study = json.load(
            urlopen(f"http://127.0.0.1:{port}/api/studies/{shown['study_summaries'][0]['study_id']}", timeout=30)
        )
    assert len(study["trials"]) == len(found)


def test_a_study_behind_optunas_proxy_and_one_in_sqlite(command: Command, outputs: Path, tmp_path: Path) -> None:
    port, url = free_port(), f"sqlite:///{tmp_path}/study.db"
    serve = f"import optuna; optuna.storages.run_grpc_proxy_server(optuna.storages.RDBStorage('{url}'), host='127.0.0.1', port={port})"
    with running("-c", serve, port=port):
        storage = [f"hydra.sweeper.storage='grpc://127.0.0.1:{port}'", "hydra.sweeper.study_name=behind"]
        done = command(*SWEEP, "hydra.sweeper.n_trials=3", *storage, f"outputs={outputs}")
        assert done.returncode == 0, done.stdout + done.stderr
    assert states(url, "behind") == ["COMPLETE"] * 3
    gone = command(
        *SWEEP, "hydra.sweeper.n_trials=3", "hydra.sweeper.storage='postgresql://x@127.0.0.1:1/x'", f"outputs={outputs}"
    )
    assert gone.returncode == 2
    assert "hydra.sweeper.storage: `postgresql://x@127.0.0.1:1/x` cannot be opened" in gone.stderr


def test_other_launchers_work_in_batches(command: Command, outputs: Path) -> None:
    done = command(*SWEEP, "hydra.sweeper.n_trials=4", "hydra/launcher=joblib", f"outputs={outputs}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 trials: 4 completed" in done.stdout
    assert len(find_runs(outputs)) == 4
