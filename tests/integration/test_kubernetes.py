"""Experiments and sweeps on Kubernetes: on the stand-in that `tests/kubernetes_server.py` describes."""

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from framework.launch.jobs import Job
from framework.record.run import RunRecord
from tests.conftest import Command
from tests.integration.test_slurm import LONG, SHORT, eventually, newest, submitted, trained_steps
from tests.kubernetes_server import Cluster, Refused, running_cluster

pytestmark = pytest.mark.integration

SMALL = (
    "recipe=digits", "compress=none", "export=none", "stages=[prepare,train,evaluate]", "model.widths=[8,16]",
    "hydra/launcher=kubernetes", "hydra.launcher.image=experiments:1", f"hydra.launcher.python={sys.executable}",
    "hydra.launcher.grace_s=30",
)  # fmt: skip


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    with running_cluster(folder) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(folder / "kubeconfig"))
        claim = {"metadata": {"name": "work"}, "spec": {}}
        secret = {"metadata": {"name": "wandb"}, "stringData": {"WANDB_API_KEY": "not in any manifest"}}
        cluster.objects["persistentvolumeclaims", "work"] = {
            "kind": "PersistentVolumeClaim",
            "apiVersion": "v1",
            **claim,
        }
        cluster.objects["secrets", "wandb"] = {"kind": "Secret", "apiVersion": "v1", **secret}
        yield cluster


@pytest.fixture
def where(outputs: Path) -> list[str]:
    """What the command needs to know of this machine: the volume is its whole disk."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        f"outputs={outputs}",
        "hydra.launcher.volumes=[{claim: work, path: /}]",
        f"hydra.launcher.environment={{FRAMEWORK_PORT: '{port}', GLOO_SOCKET_IFNAME: lo}}",
    ]


def the_job(cluster: Cluster) -> str:
    (job,) = cluster.list("jobs", "")
    return job["metadata"]["name"]


def test_one_override_sends_an_experiment_and_what_is_wrong_is_said_before(
    command: Command, cluster: Cluster, where: list[str], outputs: Path
) -> None:
    common = [*SMALL, *where, "trainer.max_epochs=1"]
    for wrong, said in {
        "hydra.launcher.volumes=[]": "lies on none of them",
        "hydra.launcher.volumes=[{claim: other, path: /}]": "there is no PersistentVolumeClaim `other`",
        "hydra.launcher.secrets=[other]": "there is no Secret `other`",
        "hydra.launcher.user=0": "pods do not run as root",
        "hydra.launcher.tolerations=[{key: a, effect: 3}]": "Kubernetes refuses such jobs",
        "hydra.launcher.colour=red": "colour",
    }.items():
        done = command(*common, f"{'+' if 'colour' in wrong else ''}{wrong}")
        assert done.returncode == 2, done.stdout + done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert cluster.submitted == 0
    dry = command(*common, "dry_run=true", "hydra.launcher.secrets=[wandb]", "hydra.launcher.deadline_s=1800")
    assert dry.returncode == 0, dry.stderr
    assert "1 job x 1 pod of 1 CPUs, 4Gi x 0.5 h = 0.5 pod hours" in dry.stdout
    manifest = next(Path(line.split()[1]) for line in dry.stdout.splitlines() if line.startswith("script"))
    assert "not in any manifest" not in manifest.read_text()
    assert cluster.submitted == 0
    for by_hand in yaml.safe_load_all(manifest.read_text()):
        cluster.create("jobs", by_hand, dry_run=False)
    with pytest.raises(Refused, match="already exists"):
        cluster.create("jobs", by_hand, dry_run=False)
    done = command(*common)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test/accuracy" in done.stdout
    eventually(lambda: Job(manifest.parent).result())
    assert RunRecord(manifest.parent.parent).metrics["test/loss"] == RunRecord(newest(outputs)).metrics["test/loss"]
    assert command("jobs", "ls", str(outputs), module=True).stdout.count("completed") == 2


def test_what_a_pod_gets_wrong_ends_the_job_and_one_that_is_killed_is_replaced(
    command: Command, cluster: Cluster, where: list[str], outputs: Path
) -> None:
    mistaken = command(*SMALL, *where, "trainer.start_from=/nowhere", "check=false")
    assert mistaken.returncode == 2, mistaken.stdout + mistaken.stderr
    (job,) = cluster.list("jobs", "")
    eventually(lambda: cluster.list("jobs", "")[0]["status"].get("conditions"))
    assert cluster.list("jobs", "")[0]["status"]["conditions"][0]["reason"] == "PodFailurePolicy"
    assert len(cluster.list("pods", "")) == 1
    cluster.delete("jobs", job["metadata"]["name"], "Background")
    with submitted(*SMALL, *where, *LONG) as waiting:
        eventually(lambda: cluster.list("jobs", ""))
        eventually(lambda: trained_steps(newest(outputs)))
        cluster.away_until = float("inf")  # the API server is away for a while, and comes back
        cluster.lose(the_job(cluster), 0)
        cluster.away_until = 0.0
        assert waiting.wait(240) == 0
    assert cluster.list("jobs", "")[0]["status"]["failed"] == 1


def test_two_nodes_go_on_exactly_after_one_is_evicted_and_when_the_submitter_dies(
    command: Command, cluster: Cluster, where: list[str], outputs: Path
) -> None:
    two = [*SMALL, *where, *SHORT, "strategy=ddp", "strategy.devices=1", "hydra.launcher.nodes=2"]
    whole = command(*two)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    undisturbed = RunRecord(newest(outputs)).metrics
    cluster.delete("jobs", the_job(cluster), "Background")
    assert cluster.list("services", "") == []  # it belonged to the Job
    with submitted(*two) as submitter:
        eventually(lambda: cluster.list("jobs", ""))
        run = newest(outputs)
        eventually(lambda: trained_steps(run))
        os.killpg(submitter.pid, signal.SIGKILL)
    cluster.evict(the_job(cluster), 1)
    followed = command("jobs", "logs", "-f", str(run), module=True)
    assert followed.returncode == 0, followed.stdout + followed.stderr
    metrics = RunRecord(run).metrics
    for name in ("val/loss", "test/loss", "test/accuracy"):
        assert metrics[name] == undisturbed[name], name
    assert cluster.list("jobs", "")[0]["status"]["failed"] == 0  # a disruption is not counted


def test_a_job_is_cancelled_and_sent_again(command: Command, cluster: Cluster, where: list[str], outputs: Path) -> None:
    left = command(*SMALL, *where, *LONG, "hydra.launcher.wait=false")
    assert left.returncode == 0, left.stderr
    run = newest(outputs)
    eventually(lambda: trained_steps(run))
    assert command("jobs", "cancel", str(run), module=True).returncode == 0
    eventually(lambda: cluster.list("jobs", "")[0]["status"].get("conditions"))
    result = Job(run / "job").result()
    assert result is not None
    assert str(result.status) == "cancelled"
    again = command("jobs", "resubmit", str(run), module=True)
    assert again.returncode == 0, again.stderr
    assert command("jobs", "collect", str(run), module=True).returncode == 0
    assert RunRecord(run)["status"] == "completed"


def test_a_sweep_runs_and_survives_its_controller(
    command: Command, cluster: Cluster, where: list[str], outputs: Path
) -> None:
    sweep = [
        "-m", *SMALL, *where, "trainer.max_epochs=4", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=5",
        "hydra/sweeper/pruner=median", "hydra.sweeper.n_jobs=2", "optimizer.lr=interval(1e-4, 1e-1)",
    ]  # fmt: skip
    with submitted(*sweep) as controller:
        eventually(lambda: len(list(outputs.glob("sweeps/*/trials/*/result.json"))) >= 1)
        os.killpg(controller.pid, signal.SIGKILL)
    done = command(*sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = outputs.glob("sweeps/*")
    counts = json.loads((folder / "study.json").read_text())["counts"]
    assert counts["completed"] + counts["pruned"] == 5
    assert cluster.submitted == 5  # none twice
