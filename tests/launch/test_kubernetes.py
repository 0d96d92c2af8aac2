"""What becomes of jobs on Kubernetes, by what their pods end with; the worker is a script, the cluster the stand-in."""

import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from framework.errors import UserError
from framework.launch.backend import Phase
from framework.launch.jobs import Job
from framework.launch.kubernetes import KubernetesBackend
from framework.launch.pods import PodResources
from framework.launch.remote import Remote
from framework.launch.submission import lines_of
from tests.kubernetes_stand_in.controllers import Cluster, running_cluster

WORKER = """#!/bin/bash
place=$3
[ -d "$place" ] || place=$(sed -n "$((JOB_COMPLETION_INDEX + 1))p" "$place")
echo "$FRAMEWORK_HEAD" >>"$place/starts.$JOB_COMPLETION_INDEX"
starts=$(wc -l <"$place/starts.$JOB_COMPLETION_INDEX")
source "$place/act.sh"
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "worker").write_text(WORKER)
    (tmp_path / "worker").chmod(0o755)
    with running_cluster(tmp_path / "cluster") as cluster:
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "cluster" / "kubeconfig"))
        yield cluster


@pytest.fixture
def backend(cluster: Cluster, tmp_path: Path) -> Callable[..., KubernetesBackend]:
    def make(kind: str = "auto", retries: int = 1, nodes: int = 1, **pods: Any) -> KubernetesBackend:
        given = {"image": "experiments:1", "volumes": [{"host": str(tmp_path), "path": str(tmp_path)}], **pods}
        resources = PodResources(nodes=nodes, **given)
        return KubernetesBackend(4, resources, Remote(str(tmp_path / "worker"), tmp_path), 1, retries, kind)

    return make


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    def make(act: str, name: str = "x") -> Job:
        made = Job.create(tmp_path / "jobs" / name, OmegaConf.create(), [], {"title": name})
        (made.folder / "act.sh").write_text(act)
        return made

    return make


def ended(backend: KubernetesBackend, jobs: Sequence[Job], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while backend.phases(jobs) != [Phase.gone] * len(jobs):
        assert time.monotonic() < until, [backend.states([job])[0] for job in jobs]
        backend.wait(0.2)


def starts(job: Job) -> list[int]:
    return [len(p.read_text().splitlines()) for p in sorted(job.folder.glob("starts.*"))]


def running(cluster: Cluster) -> list[dict[str, Any]]:
    return [pod for pod in cluster.store.list("pods") if pod["status"]["phase"] == "Running"]


@pytest.mark.parametrize("kind", ["job", "jobset"])
@pytest.mark.parametrize(
    ("act", "outcome", "begun"),
    [
        ("exit 0", "complete", 1),
        ("exit 2", "exit code 2", 1),
        ("[ $starts -gt 3 ] || exit 75", "complete", 4),
        ("[ $starts -gt 1 ] || exit 1", "complete", 2),
        ("exit 1", "exit code 1", 2),
    ],
)
def test_what_a_pod_ends_with_decides_whether_it_begins_again(
    kind: str, act: str, outcome: str, begun: int, cluster: Cluster, backend: Callable[..., KubernetesBackend],
    job: Callable[..., Job],
) -> None:  # fmt: skip
    cluster.install("jobsets")
    where, made = backend(kind), job(act)
    where.submit(made)
    ended(where, [made])
    assert outcome in f"{where.states([made])[0]} {where.why_gone(made)}"
    assert starts(made) == [begun]


@pytest.mark.parametrize(("kind", "others_begin_again"), [("job", False), ("jobset", True), ("trainjob", True)])
def test_when_a_pod_of_several_is_evicted_a_set_begins_again_as_a_whole(
    kind: str, others_begin_again: bool, cluster: Cluster, backend: Callable[..., KubernetesBackend],
    job: Callable[..., Job],
) -> None:  # fmt: skip
    cluster.install("jobsets")
    cluster.install("trainjobs")
    where = backend(kind, nodes=2, retries=0)
    made = job('for i in $(seq 200); do [ -e "$place/go" ] && exit 0; sleep 0.05; done')
    where.submit(made)
    while len(running(cluster)) < 2 or len(starts(made)) < 2:
        time.sleep(0.02)
    assert "127.0.0.1" in (made.folder / "starts.1").read_text()  # a Service stands behind the head's name
    (evicted,) = [p["metadata"]["name"] for p in running(cluster) if "-1-" in p["metadata"]["name"][-8:]]
    cluster.evict(evicted)
    while starts(made)[1] < 2:
        time.sleep(0.02)
    if others_begin_again and kind == "jobset":
        while starts(made)[0] < 2:
            time.sleep(0.02)
    (made.folder / "go").touch()
    ended(where, [made])
    assert where.states([made])[0].startswith("complete")
    if kind != "trainjob":  # its runtime's own policy decides
        assert starts(made) == [2 if others_begin_again else 1, 2]
    where.kill(made)
    assert [cluster.store.list(k) for k in ("jobs", "jobsets", "trainjobs", "services")] == [[], [], [], []]


def test_a_set_is_taken_where_there_are_such_and_several_pods_and_an_old_release_is_refused(
    cluster: Cluster, backend: Callable[..., KubernetesBackend], tmp_path: Path
) -> None:
    assert backend(nodes=2).workload.kind == "job"
    with pytest.raises(UserError, match="this cluster has no JobSets"):
        backend("jobset").check("x", tmp_path)
    cluster.install("jobsets")
    assert backend(nodes=1).workload.kind == "job"
    assert backend(nodes=2).workload.kind == "jobset"
    backend(nodes=2).check("x", tmp_path)
    cluster.store.old_jobsets = True
    with pytest.raises(UserError, match=r"older than 0\.10"):
        backend(nodes=2).check("x", tmp_path)
    with pytest.raises(UserError, match="`set` is none of auto, job, jobset, trainjob"):
        backend("set")
    with pytest.raises(UserError, match="secrets: a TrainJob cannot say it"):
        backend("trainjob", secrets=["wandb"])


def test_an_array_runs_so_many_at_once_and_each_of_it_ends_for_itself(
    cluster: Cluster, backend: Callable[..., KubernetesBackend], job: Callable[..., Job], tmp_path: Path
) -> None:
    where = backend(retries=1)
    acts = ["exit 2", "[ $starts -gt 1 ] || exit 1", "exit 1", "sleep 60", "exit 0", "sleep 0.3"]
    jobs = [job(act, f"{i}") for i, act in enumerate(acts)]
    where.submit_all(jobs, tmp_path, throttle=2)
    assert len(cluster.store.list("jobs")) == 1
    most = 0
    while where.phases(jobs).count(Phase.gone) < 5:
        most = max(most, len(running(cluster)))
        where.wait(0.02)
    assert most == 2
    assert [starts(j) for j in jobs] == [[1], [2], [2], [1], [1], [1]]
    assert where.why_gone(jobs[0]) == "its index failed (pods: Error, exit code 2)"
    assert where.phases(jobs)[3] is not Phase.gone
    assert where.states(jobs)[3] == "index 3 of an array of which 1 run"
    where.kill(jobs[3])
    asked = jobs[3].asked_to_stop()
    assert asked is not None
    (jobs[3].folder / "act.sh").write_text("exit 0")
    ended(where, jobs)
    assert starts(jobs[3]) == [2]


def test_jobs_of_several_pods_are_not_let_go_when_nobody_holds_them_back(
    cluster: Cluster, backend: Callable[..., KubernetesBackend], job: Callable[..., Job], tmp_path: Path
) -> None:
    where, jobs = backend(nodes=2), [job("exit 0", f"{i}") for i in range(3)]
    with pytest.raises(UserError, match=r"keeps 3 jobs of this kind to 2 at once; .*n_jobs=3"):
        where.submit_all(jobs, tmp_path, throttle=2)
    assert cluster.store.list("jobs") == []
    where.submit_all(jobs, tmp_path, throttle=3)
    ended(where, jobs)
    assert [starts(j) for j in jobs] == [[1, 1]] * 3


def test_a_quota_that_will_never_do_is_an_error_and_one_that_is_used_up_a_line(
    cluster: Cluster, backend: Callable[..., KubernetesBackend], job: Callable[..., Job], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team"}, "spec": {"hard": {"pods": "1"}}}
    cluster.store.create("resourcequotas", quota)
    with pytest.raises(
        UserError, match="the quota `team` will never allow it: a job takes 2 of pods, and 1 are allowed"
    ):
        backend(nodes=2).check("x", tmp_path)
    where, second = backend(), job("exit 0", "2")
    first = job('while [ ! -e "$place/go" ]; do sleep 0.05; done', "1")
    where.submit(first)
    while not running(cluster):
        time.sleep(0.02)
    cluster.store.objects["resourcequotas", "team"]["status"] = {"used": {"pods": "1"}}
    where.check("x", tmp_path)
    assert "quota   `team` is used up: 1 of 1 of pods are taken; the job will wait" in capsys.readouterr().out
    where.submit(second)
    while "FailedCreate" not in (state := where.states([second])[0]):
        time.sleep(0.02)
    assert re.fullmatch(r"0 of 1 pods ready \(FailedCreate: Error creating: pods .* exceeded quota: team\)", state)
    (first.folder / "go").touch()
    ended(where, [first, second])


def test_the_states_of_many_jobs_are_one_question(
    cluster: Cluster, backend: Callable[..., KubernetesBackend], job: Callable[..., Job], tmp_path: Path
) -> None:
    where = backend(node_selector={"gpu": "a100"})
    alone, array = [job("exit 0", f"{i}") for i in range(3)], [job("exit 0", f"a{i}") for i in range(3)]
    for one in alone:
        where.submit(one)
    where.submit_all(array, tmp_path)
    while len(cluster.store.list("pods")) < 6:
        time.sleep(0.02)
    asked = cluster.store.questions.get(("GET", "pods"), 0)
    states = where.states([*alone, *array])
    assert cluster.store.questions["GET", "pods"] == asked + 1
    assert all("(Unschedulable: 0/1 nodes are available" in state for state in states)


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="without bubblewrap, pods have no namespaces")
@pytest.mark.parametrize("kind", ["job", "jobset", "trainjob"])
def test_a_pod_is_no_root_and_writes_to_its_volumes_and_tmp_only(
    kind: str, cluster: Cluster, backend: Callable[..., KubernetesBackend], job: Callable[..., Job]
) -> None:
    cluster.install("jobsets")
    cluster.install("trainjobs")
    where = backend(kind, user=12_345)
    made = job('touch /x "$HOME/x" /dev/shm/x "$place/x" 2>&1; echo "$$ $(id -u)" >"$place/seen"')
    where.submit(made)
    ended(where, [made])
    assert (made.folder / "seen").read_text() == "1 12345\n"
    (printed,) = (made.folder.parents[1] / "cluster").glob("*.txt")
    assert printed.read_text() == "touch: cannot touch '/x': Read-only file system\n"


@pytest.mark.parametrize("kind", ["job", "jobset", "trainjob"])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"image": "nowhere/experiments:1"}, 'ImagePullBackOff: Back-off pulling image "nowhere/experiments:1"'),
        ({"node_selector": {"gpu": "a100"}}, "Unschedulable: 0/1 nodes are available"),
    ],
)
def test_what_keeps_a_pod_from_running_is_told(
    kind: str, wrong: dict[str, Any], said: str, cluster: Cluster, backend: Callable[..., KubernetesBackend],
    job: Callable[..., Job],
) -> None:  # fmt: skip
    cluster.install("jobsets")
    cluster.install("trainjobs")
    where, made = backend(kind, **wrong), job("exit 0")
    where.submit(made)
    while not cluster.store.list("pods"):
        time.sleep(0.02)
    first = next(lines_of(made, where))
    assert first.startswith(f"0 of 1 pods ready ({said}")
    assert where.phases([made]) == [Phase.waiting]
    where.stop(made)
    assert cluster.store.list("pods") == []


@pytest.mark.parametrize(
    ("scopes", "priority", "holds"),
    [
        ({"scopes": ["NotTerminating"]}, None, True),
        ({"scopes": ["BestEffort"]}, None, False),
        ({"scopes": ["PriorityClass"]}, "high", True),
        ({"scopes": ["PriorityClass"]}, None, False),
        (("In", ["high"]), "high", True),
        (("In", ["high"]), "low", False),
        (("NotIn", ["high"]), "low", True),
    ],
)
def test_a_quota_of_some_pods_is_held_against_those_only(
    scopes: Any, priority: str | None, holds: bool, cluster: Cluster, backend: Callable[..., KubernetesBackend],
    tmp_path: Path,
) -> None:  # fmt: skip
    if isinstance(scopes, tuple):
        expression = {"scopeName": "PriorityClass", "operator": scopes[0], "values": scopes[1]}
        scopes = {"scopeSelector": {"matchExpressions": [expression]}}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team"}}
    cluster.store.create("resourcequotas", {**quota, "spec": {"hard": {"requests.cpu": "1"}, **scopes}})
    where = backend(nodes=2, priority_class=priority)
    with pytest.raises(UserError, match=r"2 of requests\.cpu") if holds else nullcontext():
        where.check("x", tmp_path)


def test_whoever_waits_is_told_of_changes_and_lists_again_when_too_much_was_forgotten(
    cluster: Cluster, backend: Callable[..., KubernetesBackend], job: Callable[..., Job]
) -> None:
    where, made = backend(), job('while [ ! -e "$place/go" ]; do sleep 0.05; done')
    where.submit(made)
    while where.phases([made]) != [Phase.running]:
        where.wait(0.1)
    listed = cluster.store.questions["GET", "jobs"]
    for _ in range(20):
        where.wait(0.05)
        assert where.phases([made]) == [Phase.running]
    assert cluster.store.questions["GET", "jobs"] == listed  # nobody asks as long as nothing changes
    cluster.store.refuses_until = time.monotonic() + 0.3
    assert backend().phases([made]) == [Phase.running]  # who was refused asks again, and takes that for no answer
    cluster.store.refuses_until = float("inf")
    with pytest.raises(UserError, match=r"the Kubernetes API server at .* is away"):
        backend().phases([made])
    assert where.phases([made]) == [Phase.running]  # what was known last
    cluster.store.compact()  # what was watched is answered with 410
    (made.folder / "go").touch()
    while cluster.store.objects["jobs", cluster.store.list("jobs")[0]["metadata"]["name"]]["status"]["succeeded"] < 1:
        time.sleep(0.02)
    cluster.store.refuses_until = 0.0
    ended(where, [made])
    assert where.states([made])[0].startswith("complete")
    assert cluster.store.questions["GET", "jobs"] > listed
