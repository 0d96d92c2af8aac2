"""What a job is in Kubernetes' words: an Indexed Job, its pods, and a headless Service where there are several.

Secure by default: no root, no privileges, a read-only file system, no service token. Nothing secret is in a manifest:
environment comes from Secrets by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.errors import EXIT_PREEMPTED, EXIT_USER, UserError

from .jobs import LOG
from .remote import Remote

if TYPE_CHECKING:
    from lightkube.resources.batch_v1 import Job as ClusterJob
    from lightkube.resources.core_v1 import Service

MANAGED = {"app.kubernetes.io/managed-by": "declarative-experiments"}
RENDEZVOUS_PORT = 29_500


@dataclass(frozen=True)
class PodResources:
    """What each pod of a job is like.

    Args:
        image: has Python and the packages; the code comes with the job.
        namespace: where jobs go; by default that of the kubeconfig's context.
        context: of the kubeconfig; by default its current one.
        nodes: pods of each job.
        cpus, memory: of each pod, as in `4` and `16Gi`; asked for and not exceeded.
        gpus, gpu_resource: how many of which; a request equals its limit.
        volumes: `{claim: NAME, path: PATH}` each; `{host: PATH, path: PATH}` where a cluster allows it.
        node_selector, tolerations, service_account, priority_class: see Kubernetes.
        queue: of Kueue, which then starts the job.
        secrets: names of Secrets that become environment variables.
        environment: further variables, which are not secret.
        user: as which the pod runs, never root.
        deadline_s: how long a job may take at most.
        keep_s: how long a Job that is over stays to be looked at.
    """

    image: str
    namespace: str | None = None
    context: str | None = None
    nodes: int = 1
    cpus: str = "1"
    memory: str = "4Gi"
    gpus: int = 0
    gpu_resource: str = "nvidia.com/gpu"
    volumes: Sequence[Mapping[str, str]] = ()
    node_selector: Mapping[str, str] | None = None
    tolerations: Sequence[Mapping[str, Any]] = ()
    service_account: str | None = None
    priority_class: str | None = None
    queue: str | None = None
    secrets: Sequence[str] = ()
    environment: Mapping[str, str] | None = None
    user: int = 1000
    deadline_s: int | None = None
    keep_s: int = 86_400

    def __post_init__(self) -> None:
        if not self.image or self.image.endswith("???"):
            raise UserError("hydra.launcher.image: give one that has Python and this project's packages")
        if self.user == 0:
            raise UserError("hydra.launcher.user: pods do not run as root; give another number")
        for i, volume in enumerate(self.volumes):
            if "path" not in volume or not ({"claim", "host"} & set(volume)):
                raise UserError(f"hydra.launcher.volumes[{i}]: needs `path`, and `claim` or `host`")


def job_manifests(
    name: str, folder: Path, pods: PodResources, remote: Remote, grace_s: int, retries: int
) -> tuple[ClusterJob, Service | None]:
    """Return a job's Job, and the Service by which its pods find each other where there are several.

    Args:
        name: of both.
        folder: the job's.
        pods: what each pod is like.
        remote: how the worker is started in one.
        grace_s: so long a pod may take to save its state when it must go.
        retries: how often it is tried again whose node, and not whose user, failed it.
    """
    from lightkube.models.batch_v1 import (
        JobSpec,
        PodFailurePolicy,
        PodFailurePolicyOnExitCodesRequirement,
        PodFailurePolicyOnPodConditionsPattern,
        PodFailurePolicyRule,
    )
    from lightkube.models.core_v1 import PodTemplateSpec, ServicePort, ServiceSpec
    from lightkube.models.meta_v1 import ObjectMeta
    from lightkube.resources.batch_v1 import Job as ClusterJob
    from lightkube.resources.core_v1 import Service

    labels = {**MANAGED, "experiments/job": name}
    queue = {"kueue.x-k8s.io/queue-name": pods.queue} if pods.queue else {}
    nodes = pods.nodes

    def ends(action: str, code: int) -> PodFailurePolicyRule:
        return PodFailurePolicyRule(
            action=action, onExitCodes=PodFailurePolicyOnExitCodesRequirement(operator="In", values=[code])
        )

    policy = PodFailurePolicy(
        rules=[
            ends("FailJob", EXIT_USER),
            ends("Ignore", EXIT_PREEMPTED),
            PodFailurePolicyRule(
                action="Ignore",
                onPodConditions=[PodFailurePolicyOnPodConditionsPattern(type="DisruptionTarget", status="True")],
            ),
        ]
    )
    spec = JobSpec(
        template=PodTemplateSpec(metadata=ObjectMeta(labels=labels), spec=_pod(name, folder, pods, remote, grace_s)),
        completions=nodes,
        parallelism=nodes,
        completionMode="Indexed",
        backoffLimit=(retries + 1) * nodes - 1,  # when one pod fails, the others end, and are counted, too
        podFailurePolicy=policy,
        podReplacementPolicy="Failed",  # never two pods of one index
        activeDeadlineSeconds=pods.deadline_s,
        ttlSecondsAfterFinished=pods.keep_s,
        suspend=True if pods.queue else None,
    )
    annotations = {"experiments/folder": str(folder)}
    job = ClusterJob(metadata=ObjectMeta(name=name, labels={**labels, **queue}, annotations=annotations), spec=spec)
    if nodes == 1:
        return job, None
    service = Service(
        metadata=ObjectMeta(name=name, labels=labels),
        spec=ServiceSpec(
            clusterIP="None",
            publishNotReadyAddresses=True,
            selector={"experiments/job": name},
            ports=[ServicePort(name="rendezvous", port=RENDEZVOUS_PORT)],
        ),
    )
    return job, service


def _pod(name: str, folder: Path, pods: PodResources, remote: Remote, grace_s: int) -> Any:
    from lightkube.models.core_v1 import (
        Capabilities,
        Container,
        EmptyDirVolumeSource,
        EnvFromSource,
        EnvVar,
        HostPathVolumeSource,
        PersistentVolumeClaimVolumeSource,
        PodSecurityContext,
        PodSpec,
        ResourceRequirements,
        SeccompProfile,
        SecretEnvSource,
        SecurityContext,
        Toleration,
        Volume,
        VolumeMount,
    )

    several = pods.nodes > 1
    environment = {
        "HOME": "/tmp",
        "FRAMEWORK_NODES": str(pods.nodes),
        "FRAMEWORK_HEAD": f"{name}-0.{name}" if several else "127.0.0.1",
        **({"FRAMEWORK_PORT": str(RENDEZVOUS_PORT)} if several else {}),
        "FRAMEWORK_LOG": str(folder / LOG),
        "FRAMEWORK_STOP_BY_FILE": "1",
        **remote.environment(),
        **(pods.environment or {}),
    }
    amounts = {"cpu": pods.cpus, "memory": pods.memory}
    if pods.gpus:
        amounts[pods.gpu_resource] = str(pods.gpus)
    volumes = [
        Volume(name="tmp", emptyDir=EmptyDirVolumeSource()),
        Volume(name="shm", emptyDir=EmptyDirVolumeSource(medium="Memory")),
    ]
    mounts = [VolumeMount(name="tmp", mountPath="/tmp"), VolumeMount(name="shm", mountPath="/dev/shm")]
    for i, given in enumerate(pods.volumes):
        claim, host = given.get("claim"), given.get("host")
        volumes.append(
            Volume(
                name=f"data-{i}",
                persistentVolumeClaim=PersistentVolumeClaimVolumeSource(claimName=claim) if claim else None,
                hostPath=HostPathVolumeSource(path=host) if host else None,
            )
        )
        mounts.append(VolumeMount(name=f"data-{i}", mountPath=given["path"]))
    return PodSpec(
        containers=[
            Container(
                name="worker",
                image=pods.image,
                command=[remote.python, "-m", "framework.launch.worker", str(folder)],
                workingDir=str(remote.folder),
                env=[EnvVar(name=key, value=value) for key, value in environment.items()],
                envFrom=[EnvFromSource(secretRef=SecretEnvSource(name=secret)) for secret in pods.secrets],
                resources=ResourceRequirements(requests=amounts, limits=amounts),
                volumeMounts=mounts,
                securityContext=SecurityContext(
                    allowPrivilegeEscalation=False,
                    readOnlyRootFilesystem=True,
                    capabilities=Capabilities(drop=["ALL"]),
                ),
            )
        ],
        volumes=volumes,
        restartPolicy="Never",
        subdomain=name if several else None,
        terminationGracePeriodSeconds=grace_s,
        nodeSelector=dict(pods.node_selector or {}) or None,
        tolerations=[Toleration(**given) for given in pods.tolerations] or None,
        serviceAccountName=pods.service_account,
        automountServiceAccountToken=False,
        priorityClassName=pods.priority_class,
        securityContext=PodSecurityContext(
            runAsNonRoot=True,
            runAsUser=pods.user,
            fsGroup=pods.user,
            seccompProfile=SeccompProfile(type="RuntimeDefault"),
        ),
    )
