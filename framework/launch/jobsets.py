"""What stands for a job where more is installed in a cluster: a JobSet, or a TrainJob of Kubeflow's Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from framework.errors import EXIT_USER, UserError

from .pods import container_security, pod_security, volumes_of
from .workloads import Seen, Spawn, failure_policy, labels_of, network_of, seen_of

_NODE = "node"  # how JobSets and Kubeflow's runtimes call the pods that train


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
            template=self.spawn.template(name, folder, network_of(f"{name}-{_NODE}-0-0.{name}"), name),
            completions=nodes,
            parallelism=nodes,
            completionMode="Indexed",
            backoffLimit=0,  # it is the set that begins again
            podFailurePolicy=failure_policy(mistake="FailJob", saved="FailJob"),
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
        return seen_of(status, "Completed", ready * self.spawn.pods.nodes)

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
        pod = spawn.template(name, folder, network_of(f"{name}-{_NODE}-0-0.{name}"), None, _NODE).spec
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
        return seen_of(status, "Complete", ready * self.spawn.pods.nodes)


def _rule(name: str, action: str, reason: str, pattern: str | None = None) -> dict[str, Any]:
    rule: dict[str, Any] = {"name": name, "action": action, "onJobFailureReasons": [reason]}
    return {**rule, "onJobFailureMessagePatterns": [pattern]} if pattern else rule


def _plain(objects: Sequence[Any]) -> list[dict[str, Any]]:
    return [made.to_dict() for made in objects]
