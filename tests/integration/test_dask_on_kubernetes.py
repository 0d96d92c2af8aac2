"""Ingest in pods, on the stand-in that `tests/kubernetes_stand_in` describes."""

import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.data.dataset import prepare_dataset
from framework.data.versions import verify
from framework.errors import UserError
from tests.conftest import HOME, Compose
from tests.integration.test_dask_on_slurm import ROWS, shards
from tests.kubernetes_stand_in.controllers import Cluster, running_cluster

pytestmark = pytest.mark.integration

PODS = (
    *ROWS, "data.cluster=kubernetes", "+data.dask.options.image=experiments:1", "+data.dask.options.host=127.0.0.1",
    f"+data.dask.options.python={sys.executable}",
)  # fmt: skip


def mounted(*places: Path) -> str:
    """Return the override that has pods see some folders."""
    return f"+data.dask.options.volumes=[{', '.join(f'{{host: {place}, path: {place}}}' for place in places)}]"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    (tmp_path / "cluster").mkdir()
    with running_cluster(tmp_path / "cluster") as cluster:
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "cluster" / "kubeconfig"))
        yield cluster


def speaks_tls(address: str) -> bool:
    """Return whether a server speaks TLS, and takes nobody without a certificate."""
    host, port = re.findall(r"tls://([\d.]+):(\d+)", address)[0]
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((host, int(port)), 5) as plain, context.wrap_socket(plain) as wrapped:
        try:
            return not wrapped.recv(1)
        except ssl.SSLError as error:
            return "CERTIFICATE_REQUIRED" in str(error)


def test_pods_make_the_version_that_threads_make_and_a_lost_one_is_replaced(
    small: Compose, cluster: Cluster, tmp_path: Path
) -> None:
    encrypted: list[bool] = []

    def kill_one() -> None:
        while not list(tmp_path.rglob("rows.json")):
            time.sleep(0.05)
        with cluster.store.lock:
            (job,) = cluster.store.list("jobs")
            command = job["spec"]["template"]["spec"]["containers"][0]["command"]
            lost = cluster.store.list("pods")[0]["metadata"]["name"]
        encrypted.append(speaks_tls(next(part for part in command if part.startswith("tls://"))))
        cluster.delete("pods", lost, grace_s=0)

    villain = threading.Thread(target=kill_one, daemon=True)
    villain.start()
    made, done = prepare_dataset(small(*PODS, mounted(HOME, tmp_path), f"data.store.root={tmp_path}/pods").data)
    villain.join(10)
    assert done
    assert encrypted == [True]
    assert len(list((tmp_path / "cluster").glob("ingest-*.txt"))) == 3  # two, and one in place of the lost one
    assert cluster.store.list("jobs") == cluster.store.list("secrets") == []
    local = small(*ROWS, f"data.store.root={tmp_path}/here")
    assert shards(Path(made)) == shards(Path(prepare_dataset(local.data)[0]))
    assert verify(Path(made)) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("+data.dask.options.colour=red", "data.dask.options: .*colour"),
        ("data.dask.options.volumes=[]", r"data.dask.options.volumes: `.*` lies on none of them"),
        ("+data.dask.options.secrets=[other]", r"data.dask.options.secrets: there is no Secret `other`"),
        ("+data.dask.options.tolerations=[{key: a, effect: 3}]", "data.dask.options: Kubernetes refuses such jobs"),
    ],
)
def test_pods_that_cannot_be_had_are_refused_before_anything_is_begun(
    wrong: str, said: str, small: Compose, cluster: Cluster, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        prepare_dataset(small(*PODS, mounted(HOME, tmp_path), f"data.store.root={tmp_path}", wrong).data)
    assert cluster.store.list("jobs") == cluster.store.list("secrets") == []
