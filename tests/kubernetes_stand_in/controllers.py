"""What makes pods of Jobs, Jobs of JobSets, and JobSets of TrainJobs."""

from __future__ import annotations

import copy
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .api import Object, Refused, Server, Store
from .pods import Nodes, index_of

REPLACE_S, TICK_S = 0.2, 0.05


class Cluster:
    """A cluster: its API server's store, its controllers, and its nodes.

    Args:
        folder: for what pods print.
    """

    def __init__(self, folder: Path) -> None:
        self.store = Store()
        self.nodes = Nodes(self.store, folder)
        self.over = threading.Event()
        self.ready_again: dict[tuple[str, int], float] = {}
        self.failures: dict[tuple[str, int], int] = {}
        self.failed_indices: dict[str, set[int]] = {}

    def install(self, kind: str) -> None:
        """Install a kind of object: `jobsets`, `trainjobs`."""
        self.store.installed.add(kind)

    def evict(self, name: str) -> Object:
        """Disrupt a pod as a drained node, or a preemption, does."""
        with self.store.lock:
            pod = self.store.objects["pods", name]
            pod["status"]["conditions"] = [
                {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
            ]
            self.nodes.end(name)
            return copy.deepcopy(pod)

    def delete(self, kind: str, name: str, policy: str | None = None, grace_s: float | None = None) -> Object:
        """Delete an object, and what belongs to it."""
        with self.store.lock:
            found = self.store.get(kind, name)
            if kind == "pods" and name in self.nodes.processes:
                self.nodes.end(name, grace_s)
            else:
                del self.store.objects[kind, name]
                if policy in ("Background", "Foreground"):
                    for other, child in self.store.owned(found):
                        self.delete(other, child, policy)
            self.store.publish()
            return found

    def control(self) -> None:
        """Be the controllers and the nodes, until it is over."""
        while not self.over.wait(TICK_S):
            with self.store.lock:
                for pod, code in self.nodes.ended():
                    self._judge(pod, code)
                for reconcile, kind in (
                    (self._reconcile_trainjob, "trainjobs"), (self._reconcile_jobset, "jobsets"), (self._reconcile, "jobs"),
                ):  # fmt: skip
                    for (of, name), found in list(self.store.objects.items()):
                        if of == kind and not _ended(found):
                            reconcile(name, found)
                self.store.publish()

    # Jobs

    def _pods(self, job: Object) -> list[Object]:
        return [self.store.objects[key] for key in self.store.owned(job) if key[0] == "pods"]

    def _judge(self, pod: Object, code: int) -> None:
        """Hold a pod's end against the Job it belongs to."""
        name, index = pod["metadata"]["labels"].get("batch.kubernetes.io/job-name"), index_of(pod)
        job = self.store.objects.get(("jobs", name))
        if job is None or (pod["metadata"]["name"] not in [p["metadata"]["name"] for p in self._pods(job)]):
            del self.store.objects["pods", pod["metadata"]["name"]]
            return
        if _ended(job) or index is None:
            return
        spec, status = job["spec"], job["status"]
        if code == 0:
            status["succeeded"] += 1
            return
        self.ready_again[name, index] = time.monotonic() + REPLACE_S
        conditions = {(c["type"], c["status"]) for c in pod["status"].get("conditions", [])}
        for number, rule in enumerate(spec.get("podFailurePolicy", {}).get("rules", [])):
            codes, patterns = rule.get("onExitCodes"), rule.get("onPodConditions", [])
            by_code = bool(codes and code in codes["values"])
            if not by_code and not any((p["type"], p["status"]) in conditions for p in patterns):
                continue
            whose = f"default/{pod['metadata']['name']}"
            said = f"Container {pod['spec']['containers'][0]['name']} for pod {whose} failed with exit code {code}"
            said = said if by_code else f"Pod {whose} has condition DisruptionTarget"
            if rule["action"] == "FailJob":
                self._fail(job, "PodFailurePolicy", f"{said} matching FailJob rule at index {number}")
            if rule["action"] == "FailIndex":
                self.failed_indices.setdefault(name, set()).add(index)
            if rule["action"] != "Count":
                return
        status["failed"] += 1
        self.failures[name, index] = self.failures.get((name, index), 0) + 1
        if (limit := spec.get("backoffLimitPerIndex")) is not None:
            if self.failures[name, index] > limit:
                self.failed_indices.setdefault(name, set()).add(index)
        elif status["failed"] > spec.get("backoffLimit", 6):
            self._fail(job, "BackoffLimitExceeded", "Job has reached the specified backoff limit")

    def _fail(self, job: Object, reason: str, message: str) -> None:
        job["status"]["conditions"] = [{"type": "Failed", "status": "True", "reason": reason, "message": message}]
        for pod in self._pods(job):
            self.nodes.end(pod["metadata"]["name"])

    def _reconcile(self, name: str, job: Object) -> None:
        spec, status, pods = job["spec"], job["status"], self._pods(job)
        done = {index_of(p) for p in pods if p["status"]["phase"] == "Succeeded"}
        ready = {index_of(p) for p in pods if p["status"]["phase"] == "Running"}
        alive = ready | {index_of(p) for p in pods if p["status"]["phase"] == "Pending"}
        failed = self.failed_indices.get(name, set())
        status["active"], status["ready"] = len(alive), len(ready)
        status["completedIndexes"] = _intervals(done)
        if "backoffLimitPerIndex" in spec:
            status["failedIndexes"] = _intervals(failed)
        if spec.get("suspend"):
            return
        if len(done | failed) == spec["completions"] and not alive:
            if failed:
                self._fail(job, "FailedIndexes", "Job has failed indexes")
            else:
                status["conditions"] = [{"type": "Complete", "status": "True", "reason": "CompletionsReached"}]
            return
        began = status.setdefault("startTime", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        since = time.time() - time.mktime(time.strptime(began, "%Y-%m-%dT%H:%M:%SZ")) + time.timezone
        if (deadline := spec.get("activeDeadlineSeconds")) is not None and since > deadline:
            self._fail(job, "DeadlineExceeded", "Job was active longer than specified deadline")
            return
        for index in range(spec["completions"]):
            waits = self.ready_again.get((name, index), 0) > time.monotonic()
            if index not in done | alive | failed and not waits and len(alive) < spec["parallelism"]:
                try:
                    self._make_pod(name, job, index)
                except Refused as refused:  # the quota has no room now
                    self._warn(job, "FailedCreate", f"Error creating: {refused}")
                    return
                alive.add(index)

    def _warn(self, found: Object, reason: str, message: str) -> None:
        name = f"{found['metadata']['name']}-{reason.lower()}"
        if ("events", name) in self.store.objects:
            return
        about = {"kind": found["kind"], "name": found["metadata"]["name"], "namespace": "default"}
        event = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": name}, "involvedObject": about}
        self.store.create("events", {**event, "type": "Warning", "reason": reason, "message": message})

    def _make_pod(self, name: str, job: Object, index: int) -> None:
        template = copy.deepcopy(job["spec"]["template"])
        labels = {
            **template["metadata"].get("labels", {}),
            "batch.kubernetes.io/job-name": name,
            "batch.kubernetes.io/job-completion-index": str(index),
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"{name}-{index}-{next(self.store.counter):05d}",
                "labels": labels,
                "ownerReferences": [_reference(job)],
            },
            "spec": template["spec"],
            "status": {"phase": "Pending"},
        }
        self.store.create("pods", pod)
        self.nodes.start(self.store.objects["pods", pod["metadata"]["name"]])

    # JobSets

    def _reconcile_jobset(self, name: str, jobset: Object) -> None:
        spec = jobset["spec"]
        status = jobset.setdefault("status", {"restarts": 0, "restartsCountTowardsMax": 0})
        subdomain = spec["network"].get("subdomain", name)
        if ("services", subdomain) not in self.store.objects:
            self.store.create(
                "services",
                {
                    "apiVersion": "v1", "kind": "Service", "metadata": {"name": subdomain, "ownerReferences": [_reference(jobset)]},
                    "spec": {"clusterIP": "None", "selector": {"jobset.sigs.k8s.io/jobset-name": name}},
                },
            )  # fmt: skip
        names = {f"{name}-{part['name']}-{i}": part for part in spec["replicatedJobs"] for i in range(part["replicas"])}
        jobs = {own: self.store.objects[("jobs", own)] for own in names if ("jobs", own) in self.store.objects}
        failed = next((j for j in jobs.values() if _ended(j) == "Failed"), None)
        if failed is not None:
            self._apply_failure_policy(jobset, failed["status"]["conditions"][0], list(jobs))
            return
        ready = sum(j["status"]["ready"] + j["status"]["succeeded"] >= j["spec"]["completions"] for j in jobs.values())
        status["replicatedJobsStatus"] = [{"name": part["name"], "ready": ready} for part in spec["replicatedJobs"]]
        if len(jobs) == len(names) and all(_ended(j) == "Complete" for j in jobs.values()):
            status["conditions"] = [{"type": "Completed", "status": "True", "reason": "AllJobsCompleted"}]
        for own, part in names.items():
            leaving = any(key[0] == "pods" and key[1].startswith(f"{own}-") for key in self.store.objects)
            if own not in jobs and not spec.get("suspend") and not leaving:
                self._make_job(own, jobset, part)

    def _make_job(self, own: str, jobset: Object, part: Object) -> None:
        template = copy.deepcopy(part["template"])
        job_spec = template["spec"]
        job_spec.setdefault("completionMode", "Indexed")
        job_spec["template"]["spec"]["subdomain"] = jobset["spec"]["network"].get(
            "subdomain", jobset["metadata"]["name"]
        )
        job_spec["template"]["spec"].setdefault("restartPolicy", "OnFailure")
        job_spec["template"].setdefault("metadata", {})
        metadata = {"name": own, "labels": {"jobset.sigs.k8s.io/jobset-name": jobset["metadata"]["name"]}}
        metadata["ownerReferences"] = [_reference(jobset)]
        for key in [key for key in self.failures if key[0] == own]:
            del self.failures[key]
        self.store.create("jobs", {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": job_spec})

    def _apply_failure_policy(self, jobset: Object, why: Object, jobs: list[str]) -> None:
        status, policy = jobset["status"], jobset["spec"].get("failurePolicy", {})
        action = "RestartJobSet"
        for rule in policy.get("rules", []):
            reasons, patterns = rule.get("onJobFailureReasons"), rule.get("onJobFailureMessagePatterns")
            if (not reasons or why["reason"] in reasons) and (
                not patterns or any(re.search(p, why["message"]) for p in patterns)
            ):
                action = rule["action"]
                break
        counted = action == "RestartJobSet"
        if action == "FailJobSet" or (counted and status["restartsCountTowardsMax"] >= policy.get("maxRestarts", 0)):
            reason = "FailJobSetFailurePolicyAction" if action == "FailJobSet" else "ReachedMaxRestarts"
            status["conditions"] = [{"type": "Failed", "status": "True", "reason": reason, "message": why["message"]}]
            return
        status["restarts"] += 1
        status["restartsCountTowardsMax"] += counted
        for job in jobs:
            self.delete("jobs", job, "Foreground")

    # TrainJobs

    def _reconcile_trainjob(self, name: str, trainjob: Object) -> None:
        status = trainjob.setdefault("status", {})
        jobset = self.store.objects.get(("jobsets", name))
        if jobset is None:
            if not trainjob["spec"].get("suspend"):
                self.store.create("jobsets", _jobset_of(trainjob))
            return
        seen = jobset.get("status", {})
        status["jobsStatus"] = [
            {"ready": 0, "succeeded": 0, "failed": 0, "active": 0, "suspended": 0, **part}
            for part in seen.get("replicatedJobsStatus", [])
        ]
        if over := _ended(jobset):
            kind = "Failed" if over == "Failed" else "Complete"
            status["conditions"] = [{**seen["conditions"][0], "type": kind}]


def _jobset_of(trainjob: Object) -> Object:
    """Return the JobSet that the runtime `torch-distributed`, as it is published, makes of a TrainJob."""
    spec, trainer = trainjob["spec"], trainjob["spec"]["trainer"]
    if spec["runtimeRef"]["name"] != "torch-distributed":
        raise Refused(422, "Invalid", f"no runtime {spec['runtimeRef']['name']}")
    container: dict[str, Any] = {
        "name": "node", "image": trainer["image"], "command": trainer["command"],
        "resources": trainer["resourcesPerNode"], "env": [*trainer["env"], {"name": "PET_NNODES", "value": "1"}],
    }  # fmt: skip
    template: Object = {"metadata": {}, "spec": {"containers": [container]}}
    for patch in spec["runtimePatches"]:
        (part,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        given = part["template"]["spec"]["template"]
        template["metadata"] = given["metadata"]
        (own,) = given["spec"]["containers"]
        container |= {key: value for key, value in own.items() if key != "name"}
        template["spec"] |= {key: value for key, value in given["spec"].items() if key != "containers"}
    job = {"completions": trainer["numNodes"], "parallelism": trainer["numNodes"], "template": template}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": trainjob["metadata"]["name"], "ownerReferences": [_reference(trainjob)]},
        "spec": {
            "network": {"publishNotReadyAddresses": True},
            "replicatedJobs": [{"name": "node", "replicas": 1, "template": {"spec": job}}],
        },
    }


def _reference(owner: Object) -> Object:
    found = {"apiVersion": owner["apiVersion"], "kind": owner["kind"]}
    return {**found, "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}


def _ended(found: Object) -> str | None:
    conditions = found.get("status", {}).get("conditions", [])
    return next((c["type"] for c in conditions if c["type"] in ("Complete", "Completed", "Failed")), None)


def _intervals(indices: Any) -> str:
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and index == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], index]
        else:
            parts.append([index])
    return ",".join("-".join(map(str, part)) for part in parts)


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Run a cluster; `folder/kubeconfig` says how to reach it."""
    cluster = Cluster(folder)
    server = Server(cluster.store, cluster.delete, cluster.evict)
    threads = [threading.Thread(target=work, daemon=True) for work in (server.http.serve_forever, cluster.control)]
    for thread in threads:
        thread.start()
    server.write_kubeconfig(folder / "kubeconfig")
    try:
        yield cluster
    finally:
        server.http.shutdown()
        cluster.over.set()
        threads[1].join()
        cluster.nodes.close()
