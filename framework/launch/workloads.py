"""What stands for a job on Kubernetes: a Job here; where more is installed, what `jobsets.py` knows.

Each takes the exit codes in its own way, to the same end: a pod that saved its state (75) or was disrupted is replaced
without being counted, what the user did wrong (2) ends the job, anything else is tried again some times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from framework.errors import EXIT_PREEMPTED, EXIT_USER

from .pods import MANAGED, PodResources, pod_spec
from .remote import Remote

RENDEZVOUS_PORT = 29_500
JOB_LABEL, FOLDER_NOTE = "experiments/job", "experiments/folder"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
_ALONE = {"FRAMEWORK_HEAD": "127.0.0.1"}


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
        network = network_of(f"{name}-0.{name}") if nodes > 1 else _ALONE
        spec = JobSpec(
            template=self.spawn.template(name, folder, network, name if nodes > 1 else None),
            completions=nodes,
            parallelism=nodes,
            completionMode="Indexed",
            backoffLimit=(self.spawn.retries + 1) * nodes - 1,  # when one pod fails, the others end, and are counted
            podFailurePolicy=failure_policy(mistake="FailJob", saved="Ignore"),
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
            podFailurePolicy=failure_policy(mistake="FailIndex", saved="Ignore"),
            podReplacementPolicy="Failed",
            activeDeadlineSeconds=pods.deadline_s,
            ttlSecondsAfterFinished=pods.keep_s,
            suspend=True if pods.queue else None,
        )
        return self.resource(metadata=self.spawn.metadata(name, listed), spec=spec)

    def seen(self, found: Any) -> Seen:
        status = found.status.to_dict() if found.status else {}
        over = ",".join(filter(None, (status.get("completedIndexes"), status.get("failedIndexes"))))
        return seen_of(status, "Complete", int(status.get("ready") or 0), over)


def network_of(head: str) -> dict[str, str]:
    """Return how the pods of a job find each other, as variables; `head` is the address of the first."""
    return {"FRAMEWORK_HEAD": head, "FRAMEWORK_PORT": str(RENDEZVOUS_PORT)}


def failure_policy(mistake: str, saved: str) -> Any:
    """Return what a Job does when a pod ends by the user's mistake, and when it has saved its state or is disrupted."""
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


def seen_of(status: Mapping[str, Any], complete: str, ready: int, done: str = "") -> Seen:
    """Return what a status says; `complete` is the condition of what has ended well."""
    for condition in status.get("conditions") or []:
        if condition.get("status") != "True":
            continue
        if condition["type"] in (complete, "Failed"):
            why = ": ".join(filter(None, (condition.get("reason"), condition.get("message"))))
            return Seen("Failed" if condition["type"] == "Failed" else "Complete", why or None, ready, done=done)
        if condition["type"] == "Suspended":
            return Seen(None, None, ready, suspended=True, done=done)
    return Seen(None, None, ready, done=done)
