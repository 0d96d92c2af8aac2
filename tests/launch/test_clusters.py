import subprocess
from contextlib import nullcontext
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from framework.errors import UserError
from framework.launch.cluster import KubernetesLauncher, SlurmLauncher, cluster_launcher
from framework.launch.jobs import Job, Result, Status
from framework.launch.kubernetes import KubernetesBackend
from framework.launch.pods import PodResources
from framework.launch.remote import Remote
from framework.launch.slurm import Resources, minutes
from framework.launch.snapshot import take_snapshot
from tests.conftest import Command, Compose


@pytest.mark.parametrize(
    ("written", "given"),
    [("30m", 30), ("4h", 240), ("1.5h", 90), ("2d", 2880), (90, "90"), ("1-12:00:00", "1-12:00:00"), ("02:30", "02:30")],
)  # fmt: skip
def test_times_are_written_as_people_do(written: str | int, given: str | int) -> None:
    assert minutes(written) == given


def test_a_time_that_is_none_is_refused_and_costs_are_added_up() -> None:
    with pytest.raises(UserError, match="`soon` is no time"):
        minutes("soon")
    assert Resources(time="4h", nodes=2, gpus_per_node=8).cost(3) == (
        "3 jobs x 2 nodes x 4 h = 24 node hours, 192 GPU hours"
    )
    assert Resources(time="1-12:00:00").cost(1) == "1 job x 1 node x 36 h = 36 node hours"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.store.root=/nowhere", "`/nowhere` lies on none of them"),
        ("data.cluster=kubernetes", "pods have no rights to start others"),
        ("data.store.root=s3://bucket/datasets", None),
    ],
)
def test_what_pods_cannot_do_is_said_before_anything_is_submitted(
    override: str, said: str | None, small: Compose, outputs: Path
) -> None:
    launcher = KubernetesLauncher("experiments:1", volumes=[{"claim": "work", "path": str(outputs)}])
    with pytest.raises(UserError, match=said) if said else nullcontext():
        launcher.require_fit(small(f"data.store.root={outputs}/datasets", override))


def test_a_site_has_defaults_of_its_own(command: Command, tmp_path: Path) -> None:
    ours = tmp_path / "hydra" / "launcher" / "ours.yaml"
    ours.parent.mkdir(parents=True)
    ours.write_text("# our site\ndefaults: [slurm, _self_]\npartition: gpu\n")
    shown = command("--config-dir", str(tmp_path), "hydra/launcher=ours", "--cfg", "hydra", "-p", "hydra.launcher")
    assert shown.returncode == 0, shown.stderr
    launcher = yaml.safe_load(shown.stdout)
    assert (launcher["_target_"], launcher["partition"]) == ("hydra_plugins.framework.SlurmLauncher", "gpu")


def test_a_launcher_is_made_again_from_what_was_written_down_and_names_what_it_does_not_know() -> None:
    node = {"_target_": "hydra_plugins.framework.SlurmLauncher", "partition": "gpu", "nodes": 2}
    launcher = cluster_launcher(node)
    assert isinstance(launcher, SlurmLauncher)
    assert (launcher.resources.partition, launcher.nodes) == ("gpu", 2)
    assert cluster_launcher({"_target_": "hydra_plugins.framework.LocalLauncher"}) is None
    with pytest.raises(UserError, match="colour"):
        cluster_launcher({**node, "colour": "red"})


def test_a_snapshot_holds_the_code_as_it_is_and_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "code"
    (repository / "inner").mkdir(parents=True)
    monkeypatch.chdir(repository / "inner")
    with pytest.raises(UserError, match="in no git repository"):
        take_snapshot(tmp_path / "snapshots", 10)
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    (repository / ".gitignore").write_text("ignored/\n")
    (repository / "ignored").mkdir()
    (repository / "ignored" / "big").write_bytes(bytes(3_000_000))
    (repository / "new.py").write_text("x = 1\n")
    first = take_snapshot(repository / "outputs", 1)
    assert sorted(p.name for p in first.folder.iterdir() if p.suffix != ".diff") == [
        ".gitignore", ".snapshot.json", "new.py",
    ]  # fmt: skip
    assert first.imports == (first.folder / "inner", first.folder)
    assert take_snapshot(repository / "outputs", 1).folder == first.folder
    (repository / "new.py").write_text("x = 2\n")
    second = take_snapshot(repository / "outputs", 1)
    assert second.folder != first.folder
    assert (first.folder / "new.py").read_text() == "x = 1\n"
    (repository / "weights.bin").write_bytes(bytes(3_000_000))
    with pytest.raises(UserError, match=r"is 3 MB, and 1 are allowed(.|\n)*3\.0 MB  weights\.bin"):
        take_snapshot(repository / "outputs", 1)


def test_a_start_that_another_has_replaced_writes_no_result(small: Compose, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    job = Job.create(tmp_path / "job", small(), [], {})
    monkeypatch.setenv("FRAMEWORK_START", "7.0")
    lost = job.started()
    monkeypatch.setenv("FRAMEWORK_START", "7.1")
    valid = job.started()
    job.write_result(Result(job.attempt, Status.completed, 0, metrics={"x": 1.0}), lost)
    assert job.result() is None
    job.write_result(Result(job.attempt, Status.completed, 0, metrics={"x": 2.0}), valid)
    result = job.result()
    assert result is not None
    assert result.metrics == {"x": 2.0}


@pytest.mark.parametrize("nodes", [1, 2])
def test_manifests_keep_to_the_published_schemas_and_to_what_clusters_taught(nodes: int) -> None:
    pods = PodResources(
        "registry/experiments:1", nodes=nodes, gpus=8, volumes=[{"claim": "work", "path": "/data"}], secrets=["wandb"],
        queue="team", tolerations=[{"key": "gpu", "operator": "Exists"}], node_selector={"zone": "a"}, deadline_s=60,
    )  # fmt: skip
    backend = KubernetesBackend(1, pods, Remote("python", Path("/data")), retries=2, kind="job")
    made = [m.to_dict() for m in backend.workload.manifests("exp-x-1234", Path("/data/o/x/job"))]
    assert [m["kind"] for m in made] == ["Job", "Service"][:nodes]
    for manifest in made:
        kubernetes_validate.validate(yaml.safe_load(yaml.safe_dump(manifest)), "1.36", strict=True)
    spec = made[0]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy wants it
    assert [rule["action"] for rule in spec["podFailurePolicy"]["rules"]] == ["FailJob", "Ignore", "Ignore"]
    assert spec["backoffLimit"] >= 2 * nodes  # the ranks of a pod that fails take the others with them
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert spec["suspend"] is True  # Kueue starts it
    if nodes == 2:
        service = made[1]
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["publishNotReadyAddresses"] is True
        assert pod["subdomain"] == service["metadata"]["name"]
    for broken in ({"image": ""}, {"image": "x", "user": 0}, {"image": "x", "volumes": [{"claim": "a"}]}):
        with pytest.raises(UserError, match=r"hydra\.launcher"):
            PodResources(**broken)  # type: ignore[arg-type]
