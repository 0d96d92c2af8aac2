"""Pods that do what a scheduler elsewhere tells them, and know it by certificates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .pods import MANAGED, PodResources, pod_spec

if TYPE_CHECKING:
    from lightkube.resources.batch_v1 import Job
    from lightkube.resources.core_v1 import Secret

_GRACE_S, _LOSSES = 10, 10


def pool_manifests(
    name: str, pods: PodResources, command: Sequence[str], folder: Path, secret: Mapping[str, str]
) -> tuple[Job, Secret]:
    """Return a Job of `pods.nodes` equal pods that are replaced when they are lost, and a Secret of theirs.

    Args:
        name: of both.
        pods: what each is like.
        command: what each runs.
        folder: where.
        secret: environment that nobody else may see.
    """
    from lightkube.models.batch_v1 import JobSpec
    from lightkube.models.core_v1 import EnvFromSource, PodTemplateSpec, SecretEnvSource
    from lightkube.models.meta_v1 import ObjectMeta
    from lightkube.resources.batch_v1 import Job
    from lightkube.resources.core_v1 import Secret

    pod = pod_spec(pods, command, folder, {}, _GRACE_S)
    (container,) = pod.containers
    container.envFrom = [*(container.envFrom or []), EnvFromSource(secretRef=SecretEnvSource(name=name))]
    spec = JobSpec(
        template=PodTemplateSpec(metadata=ObjectMeta(labels=dict(MANAGED)), spec=pod),
        completions=pods.nodes,
        parallelism=pods.nodes,
        completionMode="Indexed",
        backoffLimit=_LOSSES * pods.nodes,
        ttlSecondsAfterFinished=pods.keep_s,
    )
    metadata = ObjectMeta(name=name, labels=dict(MANAGED))
    return Job(metadata=metadata, spec=spec), Secret(metadata=metadata, stringData=dict(secret))
