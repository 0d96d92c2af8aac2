"""Jobs on Kubernetes: what stands for each there (`workloads.py`), submitted, watched, and taken away.

Kubernetes' own rules do what a requeueing script does elsewhere, so that a job goes on when its submitter is gone.
Jobs, code and data lie on a volume that is mounted at the same path in the pods and where jobs are submitted; a job is
asked to stop through its folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from framework.errors import UserError
from framework.record.files import write_atomic, write_json

from .admission import require_admitted
from .backend import Phase
from .connection import Connection, Watch
from .jobs import HANDLE, LIST, Job, Status
from .jobsets import JobSet, TrainJob
from .pod_reports import last_warning, why_ended, why_waiting
from .pods import MANAGED, PodResources
from .remote import Remote
from .workloads import INDEX_LABEL, JOB_LABEL, PlainJob, Seen, Spawn, Workload

MANIFEST = "manifests.yaml"
KINDS = ("auto", "job", "jobset", "trainjob")
_WAIT_S = 0.5
_NAME_LENGTH = 40  # pods add an index and five letters, and a name has 63 at most
_GONE = Seen("Gone", "its Job is gone from the cluster")


class KubernetesBackend:
    """Runs jobs as Kubernetes'; see `Backend`.

    Args:
        slots: how many at once.
        pods: what each pod is like.
        remote: how a job's process is started in one.
        grace_s: so long a pod may take to save its state when it must go.
        retries: how often a job is tried again whose node, and not whose user, failed it.
        kind: `job`, `jobset`, `trainjob`; `auto` is a JobSet where a job has several pods and the cluster has JobSets.
        runtime: of a TrainJob.

    Raises:
        UserError: when no cluster is known, and for a kind that there is not.
    """

    def __init__(
        self,
        slots: int,
        pods: PodResources,
        remote: Remote,
        grace_s: int = 120,
        retries: int = 2,
        kind: str = "auto",
        runtime: str = "torch-distributed",
    ) -> None:
        self.slots, self.pods, self.remote = slots, pods, remote
        self._spawn = Spawn(pods, remote, grace_s, retries)
        self._connection: Connection | None = None
        self._watched: Watch | None = None
        self.workload = self._workload(kind, runtime)

    def _workload(self, kind: str, runtime: str) -> Workload:
        if kind not in KINDS:
            raise UserError(f"hydra.launcher.kind: `{kind}` is none of {', '.join(KINDS)}")
        if kind == "trainjob":
            return TrainJob(self._spawn, runtime)
        jobset = JobSet(self._spawn)
        if kind == "jobset" or (kind == "auto" and self.pods.nodes > 1 and self.connection.knows(jobset.resource)):
            return jobset
        return PlainJob(self._spawn)

    @property
    def connection(self) -> Connection:
        """The connection to the API server, made when it is needed.

        Raises:
            UserError: when no cluster is known.
        """
        if self._connection is None:
            self._connection = Connection(self.pods.context, self.pods.namespace)
        return self._connection

    @property
    def _watch(self) -> Watch:
        if self._watched is None:
            self._watched = Watch(self.connection, self.workload.resource, MANAGED)
        return self._watched

    # What is submitted

    def check(self, title: str, place: Path) -> None:
        """Let the API server judge such jobs without creating one.

        Raises:
            UserError: when it refuses, or has not what they need.
        """
        folder, snapshot = place.resolve(), self.remote.snapshot
        self.pods.require_mounted(folder, self.remote.folder, *(snapshot.imports if snapshot else ()))
        name = _name(title, folder, "check")
        answers = require_admitted(self.connection, self.workload.manifests(name, folder), self.pods)
        if isinstance(self.workload, JobSet):
            self.workload.require_known(answers[0])

    def write(self, jobs: Sequence[Job], place: Path, throttle: int | None = None) -> Path:
        """Write the manifests without submitting; returns their file."""
        from lightkube.codecs import dump_all_yaml

        array = self._array(jobs, place, throttle)
        objects = [array] if array else [m for job in jobs for m in self.workload.manifests(_name_of(job), job.folder)]
        write_atomic(place / MANIFEST, str(dump_all_yaml(objects)))
        return place / MANIFEST

    def _array(self, jobs: Sequence[Job], place: Path, throttle: int | None) -> Any:
        """Return one Job for many, where each needs one pod."""
        if len(jobs) == 1:
            return None
        if self.pods.nodes > 1 or not isinstance(self.workload, PlainJob):
            if throttle is not None and throttle < len(jobs):
                raise UserError(
                    f"hydra.launcher.wait: without somebody who waits, nothing keeps {len(jobs)} jobs of this kind to "
                    f"{throttle} at once; leave it at true, or let all go with hydra.sweeper.n_jobs={len(jobs)} "
                    "(and hydra.launcher.queue, if Kueue shall say how many run)"
                )
            return None
        write_atomic(place / LIST, "".join(f"{job.folder}\n" for job in jobs))
        name = _name(str(jobs[0].notes["title"]), place, ",".join(job.attempt for job in jobs))
        return self.workload.array(name, place / LIST, len(jobs), throttle)

    def submit(self, job: Job) -> None:
        """Create a job's objects; where they are there already, it was submitted before."""
        self.write([job], job.folder)
        name = _name_of(job)
        main, *others = self.workload.manifests(name, job.folder)
        self._note(job, name)
        self._create(main, others)

    def submit_all(self, jobs: Sequence[Job], place: Path, throttle: int | None = None) -> None:
        """Create many jobs, of which `throttle` run at once.

        Raises:
            UserError: when each has several pods, so that nothing here can hold them back.
        """
        self.write(jobs, place, throttle)
        array = self._array(jobs, place, throttle)
        for index, job in enumerate(jobs):
            if array is None:
                self.submit(job)
            else:
                self._note(job, f"{array.metadata.name}/{index}")
        if array is not None:
            self._create(array, [])

    def _note(self, job: Job, own: str) -> None:
        handle = {"backend": "kubernetes", "id": f"{self.connection.namespace}/{own}"}
        write_json(job.folder / HANDLE, handle, durable=False)

    def _create(self, main: Any, others: Sequence[Any]) -> None:
        from lightkube.core.exceptions import ApiError

        try:
            for manifest in others:  # before pods ask for it
                self.connection.create(manifest)
            made = self.connection.create(main)
            for manifest in others:
                self.connection.adopt(made, manifest)
        except ApiError as error:
            raise UserError(f"hydra.launcher: Kubernetes refuses the job: {error.status.message}") from None
        self._watch.forget()

    # Where jobs are

    def phases(self, jobs: Sequence[Job]) -> list[Phase]:
        """Return where jobs are. A final result outranks Kubernetes."""
        return [Phase.gone if job.needs_nothing() else self._phase(job) for job in jobs]

    def _phase(self, job: Job) -> Phase:
        seen, (_, index) = self._seen(job), _handle(job)
        if seen.ended or (index is not None and _holds(seen.done, index)):
            return Phase.gone
        return Phase.running if seen.ready and (index is None or job.is_begun()) else Phase.waiting

    def _seen(self, job: Job) -> Seen:
        found = self._watch.look().get(_handle(job)[0])
        return _GONE if found is None else self.workload.seen(found)

    def states(self, jobs: Sequence[Job]) -> list[str]:
        """Return Kubernetes' own words for where jobs are."""
        from lightkube.resources.core_v1 import Event

        pods = self._pods([job for job in jobs if self._lacks_pods(job)])
        reasons = {handle: why_waiting(found) for handle, found in pods.items()}
        if not all(reasons.values()):  # that there are no pods yet, or no volumes, stands elsewhere
            events = self.connection.list(Event, fields={"type": "Warning"}, if_allowed=True)
            reasons = {handle: said or last_warning(events, *handle) for handle, said in reasons.items()}
        return [self._state(job, reasons.get(_handle(job), ())) for job in jobs]

    def _lacks_pods(self, job: Job) -> bool:
        seen, (_, index) = self._seen(job), _handle(job)
        if seen.ended or seen.suspended:
            return False
        return seen.ready < self.pods.nodes if index is None else self._phase(job) is Phase.waiting

    def _state(self, job: Job, reasons: Sequence[str]) -> str:
        seen, (_, index) = self._seen(job), _handle(job)
        if seen.ended:
            return f"{seen.ended.lower()} ({seen.why})" if seen.why else seen.ended.lower()
        if seen.suspended:
            return "suspended"
        if index is None:
            ready = f"{seen.ready} of {self.pods.nodes} pods ready"
        else:
            ready = f"index {index} of an array of which {seen.ready} run"
        return f"{ready} ({'; '.join(reasons)})" if reasons else ready

    def wait(self, seconds: float) -> None:
        """Wait until Kubernetes tells of a change, or a little: see `SlurmBackend.wait`."""
        self._watch.wait(max(seconds, _WAIT_S))

    def stop(self, job: Job) -> None:
        """Leave it to the job, which sees that it was asked to; one that has not begun is taken away."""
        self._watch.forget()
        if self.phases([job]) == [Phase.waiting]:
            self.kill(job)

    def kill(self, job: Job) -> None:
        """Delete a job and its pods; of an array the pod, and what replaces it sees that nothing is wanted."""
        from lightkube.core.exceptions import ApiError
        from lightkube.resources.core_v1 import Pod

        name, index = _handle(job)
        with suppress(ApiError, UserError):
            if index is None:
                self.connection.delete(self.workload.resource, name)
            else:
                if job.asked_to_stop() is None:
                    job.ask_to_stop(Status.failed, "it was ended")
                for pod in self._pods([job])[name, index]:
                    self.connection.delete(Pod, pod.metadata.name, grace_s=0)
        self._watch.forget()

    def why_gone(self, job: Job) -> str | None:
        """Return how Kubernetes says that a job ended, and its pods."""
        seen = self._seen(job)
        if seen.ended == "Gone":
            return seen.why
        if seen.ended == "Complete":
            return None
        pods = "; ".join(why_ended(self._pods([job]).get(_handle(job), ())))
        why = f"Kubernetes says {seen.why}" if seen.ended else "its index failed"
        return f"{why} (pods: {pods})" if pods else why

    def _pods(self, jobs: Sequence[Job]) -> Mapping[tuple[str, int | None], list[Any]]:
        """Return the pods of some jobs, by their handles."""
        from lightkube.resources.core_v1 import Pod

        found: dict[tuple[str, int | None], list[Any]] = {_handle(job): [] for job in jobs}
        names = {name for name, _ in found}
        if not names:
            return found
        wanted = {JOB_LABEL: names.pop()} if len(names) == 1 else MANAGED
        for pod in self.connection.list(Pod, wanted, if_allowed=True):
            labels = pod.metadata.labels
            for index in (None, int(labels.get(INDEX_LABEL, -1))):
                if (handle := (labels.get(JOB_LABEL, ""), index)) in found:
                    found[handle].append(pod)
        return found

    def close(self) -> None:
        """Jobs go on."""


def _holds(indices: str, index: int) -> bool:
    """Return whether an index is among those written as `0-3,7`."""
    for part in filter(None, indices.split(",")):
        first, _, last = part.partition("-")
        if int(first) <= index <= int(last or first):
            return True
    return False


def _handle(job: Job) -> tuple[str, int | None]:
    """Return the name of what stands for a job, and which index of that it is."""
    with suppress(OSError, json.JSONDecodeError):
        _, name, *index = str(json.loads((job.folder / HANDLE).read_text(encoding="utf-8"))["id"]).split("/")
        return name, int(index[0]) if index else None
    return "", None


def _name_of(job: Job) -> str:
    """Return the name of a job's attempt in the cluster: the same whenever it is asked for."""
    return _name(str(job.notes["title"]), job.folder, job.attempt)


def _name(title: str, folder: Path, attempt: str) -> str:
    digest = hashlib.sha256(f"{folder}\0{attempt}".encode()).hexdigest()[:8]
    slug = re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")[: _NAME_LENGTH - 13]
    return f"exp-{slug}-{digest}".replace("--", "-")
