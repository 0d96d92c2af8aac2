"""Ingest in SLURM jobs, on a real SLURM."""

import subprocess
import threading
import time
from pathlib import Path

import pytest

from framework.data.dataset import prepare_dataset
from framework.data.versions import verify
from framework.errors import UserError
from framework.record.files import checksum
from tests.conftest import Compose

pytestmark = pytest.mark.integration

ROWS = (
    "data=synthetic", "model=mlp", "data.source.rows=60000", "+data.source.partition_rows=2500", "data.dask.workers=2",
    "data.dask.memory_limit=500MB",
)  # fmt: skip
NOISE = (*ROWS, "data.cluster=slurm", "+data.dask.options.interface=lo")


def jobs() -> list[str]:
    return subprocess.run(["squeue", "-h", "-o", "%A"], capture_output=True, text=True, check=True).stdout.split()


def shards(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): checksum(f) for f in sorted(folder.rglob("c/*")) if f.is_file()}


def test_jobs_make_the_version_that_threads_make_and_a_lost_one_is_replaced(
    small: Compose, slurm: Path, tmp_path: Path
) -> None:
    encrypted: list[bool] = []
    killed: list[str] = []

    def cancel_one() -> None:
        while not killed:
            time.sleep(0.1)
            if list(tmp_path.rglob("rows.json")):
                killed.append(jobs()[0])
                encrypted.append(bool(list(tmp_path.rglob("scheduler_key.pem"))))
                subprocess.run(["scancel", "--signal=KILL", "--full", killed[0]], check=True)

    villain = threading.Thread(target=cancel_one, daemon=True)
    villain.start()
    made, done = prepare_dataset(small(*NOISE, f"data.store.root={tmp_path}/slurm").data)
    villain.join(10)
    assert done
    assert killed and encrypted == [True]
    for _ in range(300):  # SLURM ends them in its own time
        if jobs() == []:
            break
        time.sleep(0.1)
    assert jobs() == []
    assert [f.name for f in (tmp_path / "slurm").iterdir()] == ["synthetic"]  # no keys and logs are left
    local = small(*ROWS, f"data.store.root={tmp_path}/here")
    assert shards(Path(made)) == shards(Path(prepare_dataset(local.data)[0]))
    assert verify(Path(made)) == []


def test_jobs_that_slurm_refuses_and_misspelt_options_are_named(small: Compose, slurm: Path, tmp_path: Path) -> None:
    root = f"data.store.root={tmp_path}"
    with pytest.raises(UserError, match=r"SLURM refuses such jobs: .*nowhere"):
        prepare_dataset(small(*NOISE, root, "+data.dask.options.queue=nowhere").data)
    with pytest.raises(UserError, match="walltme"):
        prepare_dataset(small(*NOISE, root, "+data.dask.options.walltme=1").data)
