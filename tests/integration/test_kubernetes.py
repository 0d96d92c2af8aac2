"""Experiments and sweeps on Kubernetes: on the stand-in that `tests/kubernetes_stand_in` describes, or on a real cluster.

For a real one, run them from a checkout on a volume that pods mount at the same path, and set

    KUBECONFIG_TEST            the kubeconfig; its namespace holds nothing else
    KUBERNETES_TEST_IMAGE      see scripts/Dockerfile
    KUBERNETES_TEST_PYTHON     the interpreter in it (python)
    KUBERNETES_TEST_VOLUME     CLAIM:PATH of the volume
"""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightkube import Client, KubeConfig
from lightkube.core.exceptions import ApiError
from lightkube.generic_resource import create_namespaced_resource
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.batch_v1 import Job as ClusterJob
from lightkube.resources.core_v1 import Pod, Secret
from lightkube.types import CascadeType

from framework.launch.connection import Connection
from framework.launch.jobs import Job
from framework.launch.pods import MANAGED
from framework.launch.workloads import INDEX_LABEL, JOB_LABEL
from framework.record.run import RunRecord
from tests.conftest import HOME, Command
from tests.integration.conftest import LONG, TRAINING, free_ports
from tests.integration.test_slurm import PRUNING, eventually, last_step, newest, submitted
from tests.kubernetes_stand_in.controllers import Cluster, running_cluster

pytestmark = pytest.mark.integration
KINDS = {
    "jobsets": ("jobset.x-k8s.io", "v1alpha2", "JobSet"),
    "trainjobs": ("trainer.kubeflow.org", "v1alpha1", "TrainJob"),
}
REAL = os.environ.get("KUBECONFIG_TEST")


class Site:
    """A cluster, and what a command needs to know of it.

    Args:
        overrides: these.
        stand_in: None for a real cluster.
    """

    def __init__(self, overrides: list[str], stand_in: Cluster | None) -> None:
        self.overrides, self.stand_in = overrides, stand_in
        self.client = Client(config=KubeConfig.from_env().get())

    def need(self, kind: str) -> None:
        """Have a kind of object that is not of Kubernetes' core; a real cluster without it skips the test."""
        if self.stand_in is not None:
            self.stand_in.install(kind)
        elif kind in KINDS and not Connection(None, None).knows(create_namespaced_resource(*KINDS[kind], kind)):
            pytest.skip(f"the cluster has no {kind}")

    def jobs(self) -> list[Any]:
        return list(self.client.list(ClusterJob, labels=dict(MANAGED)))

    def pods(self, index: int = 0) -> list[Any]:
        labels: dict[str, Any] = {**MANAGED, INDEX_LABEL: str(index)}
        return [p for p in self.client.list(Pod, labels=labels) if p.status and p.status.phase == "Running"]

    def evict(self, index: int) -> None:
        """Disrupt a pod, as a node that is drained does."""
        (pod,) = self.pods(index)
        self.client.create(Pod.Eviction(metadata=ObjectMeta(name=pod.metadata.name)), pod.metadata.name)

    def lose(self, index: int) -> None:
        """Kill a pod at once, which is no disruption."""
        (pod,) = self.pods(index)
        self.client.delete(Pod, pod.metadata.name, grace_period=0)

    def clear(self) -> None:
        """Delete all jobs."""
        for job in self.jobs():
            self.client.delete(ClusterJob, job.metadata.name, cascade=CascadeType.BACKGROUND)


@pytest.fixture
def outputs(tmp_path: Path) -> Iterator[Path]:
    """An empty folder for runs, that pods see."""
    if REAL is None:
        yield tmp_path / "outputs"
        return
    place = Path(os.environ["KUBERNETES_TEST_VOLUME"].partition(":")[2]) / f"outputs-{time.time_ns()}"
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def site(tmp_path: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    common = [
        "recipe=digits", *TRAINING, "hydra/launcher=kubernetes", "hydra.launcher.grace_s=30", f"outputs={outputs}",
    ]  # fmt: skip
    if REAL is not None:
        claim, _, path = os.environ["KUBERNETES_TEST_VOLUME"].partition(":")
        monkeypatch.setenv("KUBECONFIG", REAL)
        overrides = [
            f"hydra.launcher.image={os.environ['KUBERNETES_TEST_IMAGE']}",
            f"hydra.launcher.python={os.environ.get('KUBERNETES_TEST_PYTHON', 'python')}",
            f"hydra.launcher.volumes=[{{claim: {claim}, path: {path}}}]",
        ]
        site = Site([*common, *overrides], None)
        yield site
        site.clear()
        return
    overrides = [
        "hydra.launcher.image=experiments:1",
        f"hydra.launcher.python={sys.executable}",
        f"hydra.launcher.volumes=[{{claim: code, path: {HOME}}}, {{claim: work, path: {tmp_path}}}]",
        f"hydra.launcher.environment={{FRAMEWORK_PORT: '{free_ports(1)}', GLOO_SOCKET_IFNAME: lo}}",
    ]
    folder = tmp_path / "cluster"
    folder.mkdir()
    with running_cluster(folder) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(folder / "kubeconfig"))
        claims = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        for name in ("code", "work"):
            claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": claims}
            cluster.store.create("persistentvolumeclaims", claim)
        yield Site([*common, *overrides], cluster)


def test_one_override_sends_an_experiment_and_what_is_wrong_is_said_before(
    command: Command, site: Site, outputs: Path
) -> None:
    common = [*site.overrides, "trainer.max_epochs=1"]
    for wrong, said in {
        "hydra.launcher.volumes=[]": "lies on none of them",
        "hydra.launcher.volumes=[{claim: other, path: /}]": "there is no PersistentVolumeClaim `other`",
        "hydra.launcher.secrets=[other]": "there is no Secret `other`",
        "hydra.launcher.user=0": "pods do not run as root",
        "hydra.launcher.tolerations=[{key: a, effect: 3}]": "Kubernetes refuses such jobs",
        "+hydra.launcher.colour=red": "colour",
    }.items():
        done = command(*common, wrong)
        assert done.returncode == 2, done.stdout + done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert site.jobs() == []
    secret = {"WANDB_API_KEY": "not in any manifest"}
    site.client.create(Secret(metadata=ObjectMeta(name="wandb"), stringData=secret))
    try:
        dry = command(*common, "dry_run=true", "hydra.launcher.secrets=[wandb]", "hydra.launcher.deadline_s=1800")
        assert dry.returncode == 0, dry.stderr
        assert "1 job x 1 pod of 1 CPUs, 4Gi x 0.5 h = 0.5 pod hours" in dry.stdout
        manifest = next(Path(line.split()[1]) for line in dry.stdout.splitlines() if line.startswith("script"))
        assert "not in any manifest" not in manifest.read_text()
        assert site.jobs() == []
        for by_hand in yaml.safe_load_all(manifest.read_text()):
            made = ClusterJob.from_dict(by_hand)
            site.client.create(made)
        with pytest.raises(ApiError, match="already exists"):
            site.client.create(made)
        done = command(*common)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "test/accuracy" in done.stdout
        eventually(lambda: Job(manifest.parent).result())
    finally:
        site.client.delete(Secret, "wandb")
    assert RunRecord(manifest.parent.parent).metrics["test/loss"] == RunRecord(newest(outputs)).metrics["test/loss"]
    assert command("jobs", "ls", str(outputs), module=True).stdout.count("completed") == 2


def test_what_a_pod_gets_wrong_ends_the_job(command: Command, site: Site) -> None:
    mistaken = command(*site.overrides, "trainer.start_from=/nowhere", "check=false")
    assert mistaken.returncode == 2, mistaken.stdout + mistaken.stderr
    eventually(lambda: site.jobs()[0].status.conditions)
    assert "PodFailurePolicy" in {c.reason for c in site.jobs()[0].status.conditions}
    assert len(list(site.client.list(Pod, labels=dict(MANAGED)))) == 1


@pytest.mark.parametrize("kind", ["job", "jobset", "trainjob"])
def test_two_nodes_go_on_exactly_after_one_is_evicted_and_when_the_submitter_dies(
    kind: str, command: Command, site: Site, outputs: Path, undisturbed: dict[str, float]
) -> None:
    two = [f"hydra.launcher.kind={kind}", "strategy=ddp", "strategy.devices=1", "hydra.launcher.nodes=2"]
    for needed in {"job": ["jobs"], "jobset": ["jobsets"], "trainjob": ["jobsets", "trainjobs"]}[kind]:
        site.need(needed)
    with submitted(*site.overrides, *LONG, "model.pause_s=0.03", *two) as submitter:
        eventually(lambda: list(outputs.glob("digits/*/checkpoints/step_*")))
        run = newest(outputs)
        os.killpg(submitter.pid, signal.SIGKILL)
    site.evict(1)
    followed = command("jobs", "logs", "-f", str(run), module=True)
    assert followed.returncode == 0, followed.stdout + followed.stderr
    metrics = RunRecord(run).metrics
    for name in ("val/loss", "test/loss", "test/accuracy"):
        assert metrics[name] == undisturbed[name], name
    if kind == "job":
        assert not site.jobs()[0].status.failed  # a disruption is not counted


def test_a_job_whose_pod_is_killed_goes_on_and_is_cancelled_and_sent_again(
    command: Command, site: Site, outputs: Path
) -> None:
    left = command(*site.overrides, *LONG, "trainer.max_epochs=15", "hydra.launcher.wait=false")
    assert left.returncode == 0, left.stderr
    run = newest(outputs)
    eventually(lambda: last_step(run))
    killed = last_step(run)
    site.lose(0)
    eventually(lambda: last_step(run) > killed)
    assert site.jobs()[0].status.failed == 1
    if site.stand_in is not None:
        site.stand_in.store.refuses_until = time.monotonic() + 2  # whoever asks then asks again
    assert command("jobs", "cancel", str(run), module=True).returncode == 0
    eventually(lambda: site.jobs()[0].status.conditions)
    result = Job(run / "job").result()
    assert result is not None
    assert str(result.status) == "cancelled"
    again = command("jobs", "resubmit", str(run), module=True)
    assert again.returncode == 0, again.stderr
    assert command("jobs", "collect", str(run), module=True).returncode == 0
    assert RunRecord(run)["status"] == "completed"


def test_a_sweep_prunes_and_survives_its_controller(command: Command, site: Site, outputs: Path) -> None:
    sweep = [
        "-m", *site.overrides, *PRUNING, "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1", "trainer.max_epochs=40",
        "optimizer.lr=choice(1e-2,1e-6)", "hydra.sweeper.enqueue=[{optimizer.lr: 1e-2},{optimizer.lr: 1e-6}]",
    ]  # fmt: skip
    with submitted(*sweep) as controller:
        eventually(lambda: len(list(outputs.glob("sweeps/*/trials/*/result.json"))) >= 1)
        os.killpg(controller.pid, signal.SIGKILL)
    done = command(*sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = outputs.glob("sweeps/*")
    counts = json.loads((folder / "study.json").read_text())["counts"]
    assert (counts["completed"], counts["pruned"]) == (1, 1)
    assert len({job.metadata.labels[JOB_LABEL] for job in site.jobs()}) == 2  # none twice


def test_a_grid_is_left_to_one_job_and_collected_by_the_same_command(
    command: Command, site: Site, outputs: Path
) -> None:
    grid = ["-m", *site.overrides, "trainer.max_epochs=1", "seed=1,2", "hydra.sweeper.n_jobs=1"]
    left = command(*grid, "hydra.launcher.wait=false")
    assert left.returncode == 0, left.stderr
    assert "2 trials submitted, 1 at once" in left.stdout
    (array,) = site.jobs()
    assert (array.spec.completions, array.spec.parallelism) == (2, 1)
    done = command(*grid)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 trials: 2 completed" in done.stdout
    assert len(site.jobs()) == 1
