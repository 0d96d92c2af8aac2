"""What the pods of a job are like.

Secure by default: no root, no privileges, a read-only file system, no service token. Nothing secret is in a manifest:
environment comes from Secrets by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.errors import UserError

if TYPE_CHECKING:
    from lightkube.models.core_v1 import PodSpec, Volume, VolumeMount

MANAGED = {"app.kubernetes.io/managed-by": "declarative-experiments"}


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
        keep_s: how long a job that is over stays to be looked at.
        key: of the config, for messages.
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
    key: str = "hydra.launcher"

    def __post_init__(self) -> None:
        if not self.image or self.image.endswith("???"):
            raise UserError(f"{self.key}.image: give one that has Python and this project's packages")
        if self.user == 0:
            raise UserError(f"{self.key}.user: pods do not run as root; give another number")
        for i, volume in enumerate(self.volumes):
            if "path" not in volume or not ({"claim", "host"} & set(volume)):
                raise UserError(f"{self.key}.volumes[{i}]: needs `path`, and `claim` or `host`")

    @property
    def amounts(self) -> dict[str, str]:
        """What each pod takes, as Kubernetes writes it."""
        gpus = {self.gpu_resource: str(self.gpus)} if self.gpus else {}
        return {"cpu": str(self.cpus), "memory": str(self.memory), **gpus}

    def require_mounted(self, *places: Path) -> None:
        """Make sure that pods see some places, at the same paths.

        Raises:
            UserError: when one lies on no volume.
        """
        mounted = [Path(given["path"]) for given in self.volumes]
        for place in places:
            if not any(mount == place or mount in place.parents for mount in mounted):
                raise UserError(
                    f"{self.key}.volumes: `{place}` lies on none of them; jobs, code and data must lie where pods see "
                    "them, at the same path"
                )


def pod_spec(
    pods: PodResources,
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    grace_s: int,
    subdomain: str | None = None,
    name: str = "worker",
) -> PodSpec:
    """Return a pod of one container.

    Args:
        pods: what it is like.
        command: of the container.
        folder: where that is started.
        environment: what it needs beside `pods.environment`.
        grace_s: so long it may take to end when it must go.
        subdomain: the headless Service by which other pods find it.
        name: of the container.
    """
    from lightkube.models.core_v1 import (
        Container,
        EnvFromSource,
        EnvVar,
        PodSpec,
        ResourceRequirements,
        SecretEnvSource,
        Toleration,
    )

    volumes, mounts = _volumes(pods)
    known = {"HOME": "/tmp", **environment, **(pods.environment or {})}
    return PodSpec(
        containers=[
            Container(
                name=name,
                image=pods.image,
                command=list(command),
                workingDir=str(folder),
                env=[EnvVar(name=key, value=str(value)) for key, value in known.items()],
                envFrom=[EnvFromSource(secretRef=SecretEnvSource(name=secret)) for secret in pods.secrets],
                resources=ResourceRequirements(requests=pods.amounts, limits=pods.amounts),
                volumeMounts=mounts,
                securityContext=container_security(),
            )
        ],
        volumes=volumes,
        restartPolicy="Never",
        subdomain=subdomain,
        terminationGracePeriodSeconds=grace_s,
        nodeSelector=dict(pods.node_selector or {}) or None,
        tolerations=[Toleration(**given) for given in pods.tolerations] or None,
        serviceAccountName=pods.service_account,
        automountServiceAccountToken=False,
        priorityClassName=pods.priority_class,
        securityContext=pod_security(pods),
    )


def container_security() -> Any:
    """Return what a container may not do."""
    from lightkube.models.core_v1 import Capabilities, SecurityContext

    return SecurityContext(
        allowPrivilegeEscalation=False, readOnlyRootFilesystem=True, capabilities=Capabilities(drop=["ALL"])
    )


def pod_security(pods: PodResources) -> Any:
    """Return as whom a pod runs."""
    from lightkube.models.core_v1 import PodSecurityContext, SeccompProfile

    return PodSecurityContext(
        runAsNonRoot=True,
        runAsUser=pods.user,
        fsGroup=pods.user,
        seccompProfile=SeccompProfile(type="RuntimeDefault"),
    )


def _volumes(pods: PodResources) -> tuple[list[Volume], list[VolumeMount]]:
    from lightkube.models.core_v1 import (
        EmptyDirVolumeSource,
        HostPathVolumeSource,
        PersistentVolumeClaimVolumeSource,
        Volume,
        VolumeMount,
    )

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
    return volumes, mounts


def volumes_of(spec: PodSpec) -> tuple[list[Volume], list[VolumeMount]]:
    """Return a pod's volumes, and where its container mounts them."""
    return list(spec.volumes or []), list(spec.containers[0].volumeMounts or [])


def shortage(pods: PodResources, hard: Mapping[str, str], used: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Compare a job with a quota of the namespace.

    Returns:
        what the job takes more of than the quota will ever allow, and what it must wait for; None each where there is
        no such thing.
    """
    from lightkube.utils.quantity import parse_quantity

    never = later = None
    wanted: dict[str, Decimal] = {"pods": Decimal(pods.nodes), "count/pods": Decimal(pods.nodes)}
    for name, amount in pods.amounts.items():
        total = (parse_quantity(amount) or Decimal(0)) * pods.nodes
        wanted |= {f"requests.{name}": total, f"limits.{name}": total}
        if "/" not in name:
            wanted[name] = total
    for name, total in wanted.items():
        limit = parse_quantity(hard.get(name))
        if limit is None:
            continue
        taken = parse_quantity(used.get(name)) or Decimal(0)
        if total > limit:
            never = never or f"{total.normalize():f} of {name}, and {hard[name]} are allowed"
        elif total + taken > limit:
            later = later or f"{used.get(name)} of {hard[name]} of {name} are taken"
    return never, later
