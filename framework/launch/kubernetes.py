"""Jobs on Kubernetes: an Indexed Job for each, one pod a node, with a headless Service where there are several.

Kubernetes' own rules do what a requeueing script does elsewhere: a pod that saved its state (exit code 75) or was
disrupted is replaced without being counted, what the user did wrong (2) fails the Job, anything else is tried again.
Jobs, code and data lie on a volume that is mounted at the same path in the pods and where jobs are submitted; a job is
asked to stop through its folder. Nothing secret is in a manifest: environment comes from Secrets by name.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.errors import UserError
from framework.record.files import write_atomic, write_json

from .backend import Phase
from .jobs import HANDLE, Job
from .manifests import MANAGED, PodResources, job_manifests
from .remote import Remote

if TYPE_CHECKING:
    from lightkube import Client
    from lightkube.resources.batch_v1 import Job as ClusterJob
    from lightkube.resources.core_v1 import Service

MANIFEST = "manifests.yaml"
_NAME_LENGTH = 40  # pods add an index and five letters, and a name has 63 at most
_POLL_S, _WAIT_S, _TRIES = 1.0, 0.5, 5


class KubernetesBackend:
    """Runs jobs as Kubernetes'; see `Backend`.

    Args:
        slots: how many at once.
        pods: what each pod is like.
        remote: how a job's process is started in one.
        grace_s: so long a pod may take to save its state when it must go.
        retries: how often a job is tried again whose node, and not whose user, failed it.
    """

    def __init__(self, slots: int, pods: PodResources, remote: Remote, grace_s: int = 120, retries: int = 2) -> None:
        self.slots, self.pods, self.remote, self.grace_s, self.retries = slots, pods, remote, grace_s, retries
        self._client: Client | None = None
        self._jobs: dict[str, ClusterJob] = {}
        self._asked = 0.0

    # What is submitted

    def manifests(self, name: str, folder: Path) -> tuple[ClusterJob, Service | None]:
        """Return a job's Job, and the Service by which its pods find each other where there are several."""
        return job_manifests(name, folder, self.pods, self.remote, self.grace_s, self.retries)

    def check(self, title: str, place: Path) -> None:
        """Let the API server judge such jobs without creating one, and make sure that their volumes are there.

        Raises:
            UserError: when it refuses.
        """
        from lightkube.core.exceptions import ApiError
        from lightkube.resources.core_v1 import PersistentVolumeClaim, Secret

        folder = place.resolve()
        mounted = [Path(given["path"]) for given in self.pods.volumes]
        for path in (folder, self.remote.folder, *(self.remote.snapshot.imports if self.remote.snapshot else ())):
            if not any(mount == path or mount in path.parents for mount in mounted):
                raise UserError(
                    f"hydra.launcher.volumes: `{path}` lies on none of them; jobs, code and data must lie where pods "
                    "see them, at the same path"
                )
        wanted: list[tuple[str, Any, str]]
        wanted = [("volumes", PersistentVolumeClaim, v["claim"]) for v in self.pods.volumes if "claim" in v]
        wanted += [("secrets", Secret, name) for name in self.pods.secrets]
        for key, kind, name in wanted:
            try:
                self.client.get(kind, name)
            except ApiError as error:
                if error.status.code == 404:
                    raise UserError(f"hydra.launcher.{key}: there is no {kind.__name__} `{name}` here") from None
                if error.status.code != 403:  # who may not look may perhaps use
                    raise
        for manifest in self.manifests(_name(title, folder, "check"), folder):
            if manifest is not None:
                try:
                    self.client.create(manifest, dry_run=True)
                except ApiError as error:
                    raise UserError(f"hydra.launcher: Kubernetes refuses such jobs: {error.status.message}") from None

    def write(self, jobs: Sequence[Job], place: Path, throttle: int | None = None) -> Path:
        """Write the manifests without submitting; returns their file."""
        from lightkube.codecs import dump_all_yaml

        named = [self.manifests(_name_of(job), job.folder) for job in jobs]
        objects: list[Any] = [manifest for pair in named for manifest in pair if manifest is not None]
        write_atomic(place / MANIFEST, str(dump_all_yaml(objects)))
        return place / MANIFEST

    def submit(self, job: Job) -> None:
        """Create a job's objects; where they are there already, it was submitted before."""
        from lightkube.core.exceptions import ApiError

        name = _name_of(job)
        manifest, service = self.manifests(name, job.folder)
        self.write([job], job.folder)
        namespace = self.client.namespace
        write_json(job.folder / HANDLE, {"backend": "kubernetes", "id": f"{namespace}/{name}"}, durable=False)
        try:
            if service is not None:  # before pods ask for it
                self._create(service)
            made = self._create(manifest)
        except ApiError as error:
            raise UserError(f"hydra.launcher: Kubernetes refuses the job: {error.status.message}") from None
        if service is not None:
            assert made.metadata is not None
            owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": made.metadata.uid}
            self._asking(lambda: self.client.patch(type(service), name, {"metadata": {"ownerReferences": [owner]}}))
        self._asked = 0.0

    def _create(self, manifest: Any) -> Any:
        """Create an object; one that is there has the name of this very attempt, and is what was wanted."""
        from lightkube.core.exceptions import ApiError

        try:
            return self._asking(lambda: self.client.create(manifest))
        except ApiError as error:
            if error.status.code != 409:
                raise
            return self.client.get(type(manifest), manifest.metadata.name)

    def submit_all(self, jobs: Sequence[Job], place: Path, throttle: int | None = None) -> None:
        """Create many jobs; a queue (Kueue) or the cluster's room says how many run at once."""
        for job in jobs:
            self.submit(job)

    # Where jobs are

    @property
    def client(self) -> Client:
        """The connection to the API server.

        Raises:
            UserError: when no cluster is known.
        """
        if self._client is None:
            try:
                from lightkube import Client, KubeConfig
                from lightkube.core.exceptions import ConfigError
            except ImportError:
                raise UserError(
                    "hydra/launcher: kubernetes needs lightkube: pip install 'declarative-experiments[kubernetes]'"
                ) from None
            try:
                config = KubeConfig.from_env().get(self.pods.context)
                self._client = Client(config=config, namespace=self.pods.namespace)
            except (ConfigError, OSError) as error:
                raise UserError(f"hydra/launcher: no cluster is known (KUBECONFIG, ~/.kube/config): {error}") from None
        return self._client

    def phases(self, jobs: Sequence[Job]) -> list[Phase]:
        """Return where jobs are; one question for all, at most once a second. A final result outranks Kubernetes."""
        self._look()
        return [self._phase(job) for job in jobs]

    def _phase(self, job: Job) -> Phase:
        if job.needs_nothing():
            return Phase.gone
        found = self._jobs.get(_handle(job))
        if found is None or _condition(found, "Complete", "Failed"):
            return Phase.gone
        status = found.status
        return Phase.running if status is not None and (status.ready or 0) > 0 else Phase.waiting

    def _look(self) -> None:
        if time.monotonic() - self._asked < _POLL_S:
            return
        from lightkube.resources.batch_v1 import Job as ClusterJob

        listed = self._asking(lambda: list(self.client.list(ClusterJob, labels=dict(MANAGED))))
        self._jobs = {job.metadata.name: job for job in listed if job.metadata and job.metadata.name}
        self._asked = time.monotonic()

    def state(self, job: Job) -> str:
        """Return Kubernetes' own words for where a job is."""
        self._look()
        found = self._jobs.get(_handle(job))
        if found is None:
            return "gone"
        ended = _condition(found, "Complete", "Failed", "Suspended")
        if ended is not None:
            return f"{ended.type} ({ended.reason})" if ended.reason else ended.type
        status = found.status
        return f"{(status.ready or 0) if status else 0} of {self.pods.nodes} pods ready"

    def wait(self, seconds: float) -> None:
        """Wait a little."""
        time.sleep(max(seconds, _WAIT_S))

    def stop(self, job: Job) -> None:
        """Leave it to the job, which sees that it was asked to; one that has not begun is taken away."""
        self._asked = 0.0
        if self.phases([job]) == [Phase.waiting]:
            self.kill(job)

    def kill(self, job: Job) -> None:
        """Delete a job and its pods."""
        from lightkube.core.exceptions import ApiError
        from lightkube.resources.batch_v1 import Job as ClusterJob
        from lightkube.types import CascadeType

        with suppress(ApiError):
            self.client.delete(ClusterJob, _handle(job), cascade=CascadeType.BACKGROUND)
        self._asked = 0.0

    def why_gone(self, job: Job) -> str | None:
        """Return how Kubernetes says that a job ended, and its pods."""
        from lightkube.resources.core_v1 import Pod

        found = self._jobs.get(_handle(job))
        if found is None:
            return "its Job is gone from the cluster"
        ended = _condition(found, "Failed")
        if ended is None:
            return None
        reasons = set()
        for pod in self._asking(lambda: list(self.client.list(Pod, labels={"experiments/job": _handle(job)}))):
            for container in (pod.status.containerStatuses or []) if pod.status else []:
                over = container.state.terminated if container.state else None
                if over is not None and over.exitCode:
                    reasons.add(f"{over.reason or 'Error'}, exit code {over.exitCode}")
        pods = f" (pods: {'; '.join(sorted(reasons))})" if reasons else ""
        return f"Kubernetes says {ended.reason}: {ended.message}{pods}"

    def close(self) -> None:
        """Jobs go on."""

    def _asking(self, ask: Any) -> Any:
        """Ask the API server, several times when it is away or overwhelmed."""
        from lightkube.core.exceptions import ApiError

        for attempt in range(_TRIES):
            try:
                return ask()
            except ApiError as error:
                if attempt == _TRIES - 1 or (error.status.code not in (410, 429) and (error.status.code or 0) < 500):
                    raise
            except OSError:
                if attempt == _TRIES - 1:
                    raise
            time.sleep(0.2 * 2**attempt)
        raise AssertionError("unreachable")


def _condition(job: Any, *types: str) -> Any:
    conditions = (job.status.conditions or []) if job.status else []
    return next((c for c in conditions if c.type in types and c.status == "True"), None)


def _handle(job: Job) -> str:
    with suppress(OSError, json.JSONDecodeError):
        return str(json.loads((job.folder / HANDLE).read_text(encoding="utf-8"))["id"]).rpartition("/")[2]
    return ""


def _name_of(job: Job) -> str:
    """Return the name of a job's attempt in the cluster: the same whenever it is asked for."""
    return _name(str(job.notes["title"]), job.folder, job.attempt)


def _name(title: str, folder: Path, attempt: str) -> str:
    digest = hashlib.sha256(f"{folder}\0{attempt}".encode()).hexdigest()[:8]
    slug = re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")[: _NAME_LENGTH - 13]
    return f"exp-{slug}-{digest}".replace("--", "-")
