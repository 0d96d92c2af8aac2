"""What a cluster would say of jobs, before there are any: volumes, Secrets, schemas, policies, quotas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from framework.errors import UserError

from .connection import Connection
from .pods import PodResources, shortage

_FORBIDDEN, _UNKNOWN = 403, 404


def require_admitted(connection: Connection, manifests: Sequence[Any], pods: PodResources) -> list[Any]:
    """Let the API server judge a job's objects, and a pod of it, without creating one; returns what it makes of them.

    Where a quota would let the job run, but not now, a line says so.

    Raises:
        UserError: when the cluster refuses, or has not what they need.
    """
    from lightkube.resources.batch_v1 import Job

    _require_there(connection, pods)
    answers = [_tried(connection, manifest, pods.key) for manifest in manifests]
    if isinstance(manifests[0], Job):  # much is held against its pods only
        _try_pod(connection, manifests[0], pods)
    _require_quota(connection, pods)
    return answers


def _require_there(connection: Connection, pods: PodResources) -> None:
    from lightkube.core.exceptions import ApiError
    from lightkube.resources.core_v1 import PersistentVolumeClaim, Secret

    wanted: list[tuple[str, Any, str]]
    wanted = [("volumes", PersistentVolumeClaim, v["claim"]) for v in pods.volumes if "claim" in v]
    wanted += [("secrets", Secret, name) for name in pods.secrets]
    for key, kind, name in wanted:
        try:
            connection.get(kind, name)
        except ApiError as error:
            if error.status.code == _UNKNOWN:
                raise UserError(f"{pods.key}.{key}: there is no {kind.__name__} `{name}` here") from None
            if error.status.code != _FORBIDDEN:  # who may not look may perhaps use
                raise


def _tried(connection: Connection, manifest: Any, key: str) -> Any:
    from lightkube.core.exceptions import ApiError

    try:
        return connection.ask(lambda: connection.client.create(manifest, dry_run=True))
    except ApiError as error:
        if error.status.code == _UNKNOWN:
            kind = manifest.to_dict()["kind"]
            raise UserError(f"{key}.kind: this cluster has no {kind}s: {error.status.message}") from None
        raise UserError(f"{key}: Kubernetes refuses such jobs: {error.status.message}") from None


def _try_pod(connection: Connection, job: Any, pods: PodResources) -> None:
    from lightkube.core.exceptions import ApiError
    from lightkube.models.meta_v1 import ObjectMeta
    from lightkube.resources.core_v1 import Pod

    template = job.spec.template
    metadata = ObjectMeta(name=f"{job.metadata.name}-0", labels=template.metadata.labels)
    try:
        connection.ask(lambda: connection.client.create(Pod(metadata=metadata, spec=template.spec), dry_run=True))
    except ApiError as error:
        message = error.status.message or ""
        if error.status.code == _FORBIDDEN and ("cannot create" in message or "exceeded quota" in message):
            return  # who may create Jobs need not be one who may create pods; of quotas, below
        raise UserError(f"{pods.key}: Kubernetes refuses such pods: {message}") from None


def _require_quota(connection: Connection, pods: PodResources) -> None:
    from lightkube.resources.core_v1 import ResourceQuota

    for quota in connection.list(ResourceQuota, if_allowed=True):
        if quota.spec is None or not _concerns(quota.spec, pods):
            continue
        used = (quota.status.used if quota.status else None) or {}
        never, later = shortage(pods, quota.spec.hard or {}, used)
        if never:
            raise UserError(f"{pods.key}: the quota `{quota.metadata.name}` will never allow it: a job takes {never}")
        if later:
            print(f"quota   `{quota.metadata.name}` is used up: {later}; the job will wait for room")


def _concerns(quota: Any, pods: PodResources) -> bool:
    """Return whether a quota is known to hold for such pods: they state what they ask for, and no deadline."""
    wanted = [(scope, "Exists", ()) for scope in quota.scopes or ()]
    if quota.scopeSelector is not None:
        wanted += [(e.scopeName, e.operator, tuple(e.values or ())) for e in quota.scopeSelector.matchExpressions or ()]
    return all(_is_in(scope, operator, values, pods.priority_class) for scope, operator, values in wanted)


def _is_in(scope: str, operator: str, values: Sequence[str], priority: str | None) -> bool:
    if scope != "PriorityClass":
        return scope in ("NotTerminating", "NotBestEffort")
    if priority is None:  # then the cluster may have a default
        return False
    return {"In": priority in values, "NotIn": priority not in values, "Exists": True}.get(operator, False)
