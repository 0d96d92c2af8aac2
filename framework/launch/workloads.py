"""What stands for a job on Kubernetes: a Job; a JobSet, which begins all its pods again; a TrainJob of Kubeflow's.

Each takes the exit codes in its own way, to the same end: a pod that saved its state (75) or was disrupted is replaced
without being counted, what the user did wrong (2) ends the job, anything else is tried again some times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from framework.errors import EXIT_PREEMPTED, EXIT_USER, UserError

from .pods import MANAGED, PodResources, container_security, pod_security, pod_spec, volumes_of
from .remote import Remote

RENDEZVOUS_PORT = 29_500
JOB_LABEL, FOLDER_NOTE = "experiments/job", "experiments/folder"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
_ALONE = {"FRAMEWORK_HEAD": "127.0.0.1"}
_NODE = "node"  # how JobSets and Kubeflow's runtimes call the pods that train


@dataclass(frozen=True)
class Seen:
    """Where a workload is.

    Args:
        ended: `Complete` or `Failed`, once it is over.
        why: the reason, and what Kubernetes says of it.
        ready: how many pods are.
        suspended: it waits for a queue.
        done: the indices of an array that are over, as in `0-3,7`.
    """

    ended: str | None = None
    why: str | None = None
    ready: int = 0
    suspended: bool = False
    done: str = ""


class Workload(Protocol):
    """A way to have a job run."""

    kind: str

    @property
    def resource(self) -> type[Any]:
        """The kind of object that stands for a job."""

    def manifests(self, name: str, folder: Path) -> list[Any]:
        """Return a job's objects: the one that stands for it, and what its pods need beside it."""

    def seen(self, found: Any) -> Seen:
        """Return where the job is that an object stands for."""


@dataclass(frozen=True)
class Spawn:
    """How the pods of jobs are started.

    Args:
        pods: what each is like.
        remote: how the worker is started in one.
        grace_s: so long a pod may take to save its state when it must go.
        retries: how often a job is tried again whose node, and not whose user, failed it.
    """

    pods: PodResources
    remote: Remote
    grace_s: int
    retries: int

    def template(
        self,
        name: str,
        place: Path,
        network: Mapping[str, str],
        subdomain: str | None = None,
        container: str = "worker",
    ) -> Any:
        """Return the template of pods; `network` is how they find each other, as variables."""
        from lightkube.models.core_v1 import PodTemplateSpec
        from lightkube.models.meta_v1 import ObjectMeta

        known = {
            "FRAMEWORK_NODES": str(self.pods.nodes),
            "FRAMEWORK_KEEP_LOG": "1",
            "FRAMEWORK_STOP_BY_FILE": "1",
            **network,
            **self.remote.environment(),
        }
        command = [self.remote.python, "-m", "framework.launch.worker", str(place)]
        pod = pod_spec(self.pods, command, self.remote.folder, known, self.grace_s, subdomain, container)
        return PodTemplateSpec(metadata=ObjectMeta(labels=labels_of(name)), spec=pod)

    def metadata(self, name: str, place: Path) -> Any:
        """Return the metadata of the object that stands for a job."""
        from lightkube.models.meta_v1 import ObjectMeta

        queue = {"kueue.x-k8s.io/queue-name": self.pods.queue} if self.pods.queue else {}
        return ObjectMeta(name=name, labels={**labels_of(name), **queue}, annotations={FOLDER_NOTE: str(place)})


def labels_of(name: str) -> dict[str, str]:
    """Return the labels of all that belongs to a job."""
    return {**MANAGED, JOB_LABEL: name}


class PlainJob:
    """An Indexed Job, one pod a node, with a headless Service where there are several; it needs nothing installed."""

    kind = "job"

    def __init__(self, spawn: Spawn) -> None:
        self.spawn = spawn

    @property
    def resource(self) -> type[Any]:
        from lightkube.resources.batch_v1 import Job as ClusterJob

        return ClusterJob

    def manifests(self, name: str, folder: Path) -> list[Any]:
        from lightkube.models.batch_v1 import JobSpec

        pods, nodes = self.spawn.pods, self.spawn.pods.nodes
        network = _network(f"{name}-0.{name}") if nodes > 1 else _ALONE
        spec = JobSpec(
            template=self.spawn.template(name, folder, network, name if nodes > 1 else None),
            completions=nodes,
            parallelism=nodes,
            completionMode="Indexed",
            backoffLimit=(self.spawn.retries + 1) * nodes - 1,  # when one pod fails, the others end, and are counted
            podFailurePolicy=_policy(mistake="FailJob", saved="Ignore"),
            podReplacementPolicy="Failed",  # never two pods of one index
            activeDeadlineSeconds=pods.deadline_s,
            ttlSecondsAfterFinished=pods.keep_s,
            suspend=True if pods.queue else None,
        )
        job = self.resource(metadata=self.spawn.metadata(name, folder), spec=spec)
        return [job] if nodes == 1 else [job, _service(name)]

    def array(self, name: str, listed: Path, count: int, throttle: int | None) -> Any:
        """Return one Job for many jobs of a pod each.

        Args:
            name: its name.
            listed: a file that lists their folders.
            count: how many.
            throttle: how many run at once.
        """
        from lightkube.models.batch_v1 import JobSpec

        pods = self.spawn.pods
        spec = JobSpec(
            template=self.spawn.template(name, listed, {**_ALONE, "FRAMEWORK_NODE_RANK": "0"}),
            completions=count,
            parallelism=min(throttle or count, count),
            completionMode="Indexed",
            backoffLimitPerIndex=self.spawn.retries,
            podFailurePolicy=_policy(mistake="FailIndex", saved="Ignore"),
            podReplacementPolicy="Failed",
            activeDeadlineSeconds=pods.deadline_s,
            ttlSecondsAfterFinished=pods.keep_s,
            suspend=True if pods.queue else None,
        )
        return self.resource(metadata=self.spawn.metadata(name, listed), spec=spec)

    def seen(self, found: Any) -> Seen:
        status = found.status.to_dict() if found.status else {}
        over = ",".join(filter(None, (status.get("completedIndexes"), status.get("failedIndexes"))))
        return _seen(status, "Complete", int(status.get("ready") or 0), over)


class JobSet:
    """A JobSet of one such Job: when a pod fails or goes, all of them begin again together.

    Source: https://jobset.sigs.k8s.io, of 0.10 or newer.
    """

    kind = "jobset"

    def __init__(self, spawn: Spawn) -> None:
        self.spawn = spawn

    @property
    def resource(self) -> type[Any]:
        from lightkube.generic_resource import create_namespaced_resource

        return create_namespaced_resource("jobset.x-k8s.io", "v1alpha2", "JobSet", "jobsets")

    def manifests(self, name: str, folder: Path) -> list[Any]:
        from lightkube.models.batch_v1 import JobSpec, JobTemplateSpec

        pods, nodes = self.spawn.pods, self.spawn.pods.nodes
        job = JobSpec(
            template=self.spawn.template(name, folder, _network(f"{name}-{_NODE}-0-0.{name}"), name),
            completions=nodes,
            parallelism=nodes,
            completionMode="Indexed",
            backoffLimit=0,  # it is the set that begins again
            podFailurePolicy=_policy(mistake="FailJob", saved="FailJob"),
            podReplacementPolicy="Failed",
            activeDeadlineSeconds=pods.deadline_s,
        )
        rules = [
            _rule("mistaken", "FailJobSet", "PodFailurePolicy", f"failed with exit code {EXIT_USER} "),
            _rule("savedOrDisrupted", "RestartJobSetAndIgnoreMaxRestarts", "PodFailurePolicy"),
            _rule("deadline", "FailJobSet", "DeadlineExceeded"),
        ]
        spec: dict[str, Any] = {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True, "subdomain": name},
            "failurePolicy": {"maxRestarts": self.spawn.retries, "rules": rules},
            "replicatedJobs": [
                {"name": _NODE, "replicas": 1, "template": JobTemplateSpec(spec=job).to_dict()},
            ],
            "ttlSecondsAfterFinished": pods.keep_s,
        }
        if pods.queue:
            spec["suspend"] = True
        return [self.resource(metadata=self.spawn.metadata(name, folder), spec=spec)]

    def seen(self, found: Any) -> Seen:
        status = found.status or {}
        ready = sum(int(part.get("ready") or 0) for part in status.get("replicatedJobsStatus") or [])
        return _seen(status, "Completed", ready * self.spawn.pods.nodes)

    @staticmethod
    def require_known(answer: Any) -> None:
        """Make sure that the cluster has understood when not to begin again.

        Raises:
            UserError: when it has dropped a part of what it was given.
        """
        rules = answer["spec"].get("failurePolicy", {}).get("rules") or [{}]
        if not rules[0].get("onJobFailureMessagePatterns"):
            raise UserError(
                "hydra.launcher.kind: the JobSet of this cluster is older than 0.10, and would take a preemption for a "
                "mistake of yours; write hydra.launcher.kind=job"
            )


class TrainJob:
    """A TrainJob, which Kubeflow's Trainer makes a JobSet of; how often a pod is tried again is for its runtime to say.

    Source: https://www.kubeflow.org/docs/components/trainer, of 2.2 or newer.

    Args:
        spawn: how its pods are started.
        runtime: the name of a ClusterTrainingRuntime of which the pods that train are called `node`.

    Raises:
        UserError: for what a TrainJob cannot say.
    """

    kind = "trainjob"

    def __init__(self, spawn: Spawn, runtime: str) -> None:
        self.spawn, self.runtime = spawn, runtime
        for key in ("secrets", "priority_class"):
            if getattr(spawn.pods, key):
                raise UserError(f"hydra.launcher.{key}: a TrainJob cannot say it; its runtime can")

    @property
    def resource(self) -> type[Any]:
        from lightkube.generic_resource import create_namespaced_resource

        return create_namespaced_resource("trainer.kubeflow.org", "v1alpha1", "TrainJob", "trainjobs")

    def manifests(self, name: str, folder: Path) -> list[Any]:
        pods, spawn = self.spawn.pods, self.spawn
        pod = spawn.template(name, folder, _network(f"{name}-{_NODE}-0-0.{name}"), None, _NODE).spec
        volumes, mounts = volumes_of(pod)
        patch = {
            "volumes": _plain(volumes),
            "containers": [
                {"name": _NODE, "volumeMounts": _plain(mounts), "securityContext": container_security().to_dict()}
            ],
            "securityContext": pod_security(pods).to_dict(),
            "terminationGracePeriodSeconds": spawn.grace_s,
        }
        given = {
            "serviceAccountName": pods.service_account,
            "nodeSelector": dict(pods.node_selector or {}),
            "tolerations": _plain(pod.tolerations or []),
        }
        patch |= {key: value for key, value in given.items() if value}
        template = {"metadata": {"labels": labels_of(name)}, "spec": patch}
        (container,) = pod.containers
        spec: dict[str, Any] = {
            "runtimeRef": {"name": self.runtime},
            "trainer": {
                "image": pods.image,
                "command": container.command,
                "env": _plain(container.env),
                "numNodes": pods.nodes,
                "numProcPerNode": 1,
                "resourcesPerNode": container.resources.to_dict(),
            },
            "runtimePatches": [
                {
                    "manager": "declarative-experiments/launcher",
                    "trainingRuntimeSpec": {
                        "template": {
                            "spec": {"replicatedJobs": [{"name": _NODE, "template": {"spec": {"template": template}}}]}
                        }
                    },
                }
            ],
        }
        if pods.deadline_s is not None:
            spec["activeDeadlineSeconds"] = pods.deadline_s
        if pods.queue:
            spec["suspend"] = True
        return [self.resource(metadata=spawn.metadata(name, folder), spec=spec)]

    def seen(self, found: Any) -> Seen:
        status = found.status or {}
        ready = sum(int(part.get("ready") or 0) for part in status.get("jobsStatus") or [])
        return _seen(status, "Complete", ready * self.spawn.pods.nodes)


def _network(head: str) -> dict[str, str]:
    return {"FRAMEWORK_HEAD": head, "FRAMEWORK_PORT": str(RENDEZVOUS_PORT)}


def _policy(mistake: str, saved: str) -> Any:
    from lightkube.models.batch_v1 import (
        PodFailurePolicy,
        PodFailurePolicyOnExitCodesRequirement,
        PodFailurePolicyOnPodConditionsPattern,
        PodFailurePolicyRule,
    )

    def ends(action: str, code: int) -> PodFailurePolicyRule:
        return PodFailurePolicyRule(
            action=action, onExitCodes=PodFailurePolicyOnExitCodesRequirement(operator="In", values=[code])
        )

    disrupted = PodFailurePolicyOnPodConditionsPattern(type="DisruptionTarget", status="True")
    return PodFailurePolicy(
        rules=[
            ends(mistake, EXIT_USER),
            ends(saved, EXIT_PREEMPTED),
            PodFailurePolicyRule(action=saved, onPodConditions=[disrupted]),
        ]
    )


def _rule(name: str, action: str, reason: str, pattern: str | None = None) -> dict[str, Any]:
    rule: dict[str, Any] = {"name": name, "action": action, "onJobFailureReasons": [reason]}
    return {**rule, "onJobFailureMessagePatterns": [pattern]} if pattern else rule


def _service(name: str) -> Any:
    from lightkube.models.core_v1 import ServicePort, ServiceSpec
    from lightkube.models.meta_v1 import ObjectMeta
    from lightkube.resources.core_v1 import Service

    return Service(
        metadata=ObjectMeta(name=name, labels=labels_of(name)),
        spec=ServiceSpec(
            clusterIP="None",
            publishNotReadyAddresses=True,
            selector={JOB_LABEL: name},
            ports=[ServicePort(name="rendezvous", port=RENDEZVOUS_PORT)],
        ),
    )


def _seen(status: Mapping[str, Any], complete: str, ready: int, done: str = "") -> Seen:
    for condition in status.get("conditions") or []:
        if condition.get("status") != "True":
            continue
        if condition["type"] in (complete, "Failed"):
            why = ": ".join(filter(None, (condition.get("reason"), condition.get("message"))))
            return Seen("Failed" if condition["type"] == "Failed" else "Complete", why or None, ready, done=done)
        if condition["type"] == "Suspended":
            return Seen(None, None, ready, suspended=True, done=done)
    return Seen(None, None, ready, done=done)


def _plain(objects: Sequence[Any]) -> list[dict[str, Any]]:
    return [made.to_dict() for made in objects]
