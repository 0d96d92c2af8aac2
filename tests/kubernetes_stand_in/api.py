"""The API server: objects, their versions, and what HTTP is answered."""

from __future__ import annotations

import copy
import itertools
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import kubernetes_validate
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob

VERSION = "1.36"
Object = dict[str, Any]
Key = tuple[str, str]

GROUPS = {
    "api/v1": {"pods", "services", "secrets", "persistentvolumeclaims", "resourcequotas", "events"},
    "apis/batch/v1": {"jobs"},
    "apis/jobset.x-k8s.io/v1alpha2": {"jobsets"},
    "apis/trainer.kubeflow.org/v1alpha1": {"trainjobs"},
}
_CUSTOM = {"jobsets": JobsetV1alpha2JobSet, "trainjobs": TrainerV1alpha1TrainJob}
_KIND = {
    "pods": "Pod", "services": "Service", "secrets": "Secret", "persistentvolumeclaims": "PersistentVolumeClaim",
    "resourcequotas": "ResourceQuota", "events": "Event", "jobs": "Job", "jobsets": "JobSet", "trainjobs": "TrainJob",
}  # fmt: skip


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = {
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message,
        }  # fmt: skip


def validate(kind: str, given: Object) -> None:
    """Refuse what a published schema does not allow, and what the schemas let through and the API server does not."""
    name = given["metadata"]["name"]
    try:
        if kind in _CUSTOM:
            _validate_custom(kind, given)
        else:
            kubernetes_validate.validate(given, VERSION, strict=True)
    except (kubernetes_validate.ValidationError, ValueError) as error:
        raise Refused(422, "Invalid", str(error)) from None
    longest = {"jobs": 63 - 8, "jobsets": 63 - 15, "trainjobs": 63 - 15}.get(kind, 63)  # pods' names are longer
    if not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > longest:
        raise Refused(422, "Invalid", f"metadata.name: Invalid value: {name!r}")
    if kind == "jobs":
        _validate_job(given["spec"])
    if kind == "jobsets":
        for part in given["spec"]["replicatedJobs"]:
            _validate_job(part["template"]["spec"])


def _validate_custom(kind: str, given: Object) -> None:
    known = json.loads(json.dumps(_CUSTOM[kind].from_dict(copy.deepcopy(given)).to_dict(), default=str))
    if lost := _beyond(given, known, ""):
        raise ValueError(f"unknown fields: {', '.join(lost)}")


def _beyond(given: Any, known: Any, place: str) -> list[str]:
    """Return the fields of one object that another, which was made of it, has not."""
    if isinstance(given, dict) and isinstance(known, dict):
        lost = [f"{place}.{k}" for k, v in given.items() if k not in known and v not in (None, {}, [])]
        return lost + [f for k in given.keys() & known.keys() for f in _beyond(given[k], known[k], f"{place}.{k}")]
    if isinstance(given, list) and isinstance(known, list):
        return [f for a, b in zip(given, known, strict=True) for f in _beyond(a, b, f"{place}[]")]
    return []


def _validate_job(spec: Object) -> None:
    pod = spec["template"]["spec"]
    actions = {rule["action"] for rule in spec.get("podFailurePolicy", {}).get("rules", [])}
    if "podFailurePolicy" in spec and pod.get("restartPolicy") != "Never":
        raise Refused(422, "Invalid", "spec.template.spec.restartPolicy: must be Never with a podFailurePolicy")
    if "FailIndex" in actions and "backoffLimitPerIndex" not in spec:
        raise Refused(422, "Invalid", "spec.podFailurePolicy: FailIndex needs backoffLimitPerIndex")
    for container in pod["containers"]:
        resources = container.get("resources", {})
        for name, limit in resources.get("limits", {}).items():
            if "/" in name and resources.get("requests", {}).get(name, limit) != limit:
                raise Refused(422, "Invalid", f"resources.requests: must equal the limit of {name}")


class Store:
    """The objects, by kind and name, and what has happened to them.

    Attributes:
        installed: which kinds there are.
        old_jobsets: JobSets are those of a release that does not know patterns of messages.
        refuses_until: until when every question is answered with 503, in seconds of the monotonic clock.
        questions: how many were asked, by method and kind.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.objects: dict[Key, Object] = {}
        self.installed = {kind for kinds in GROUPS.values() for kind in kinds} - {"jobsets", "trainjobs"}
        self.old_jobsets = False
        self.refuses_until = 0.0
        self.questions: dict[tuple[str, str], int] = {}
        self.counter = itertools.count(1)
        self._published: dict[Key, str] = {}
        self.events: list[tuple[int, str, str, Object]] = []
        self.oldest = 0
        self.watch_generation = 0

    def create(self, kind: str, given: Object, dry_run: bool = False) -> Object:
        given = copy.deepcopy(given)
        validate(kind, given)
        name = given["metadata"]["name"]
        if kind == "jobsets" and self.old_jobsets:
            for rule in given["spec"].get("failurePolicy", {}).get("rules", []):
                rule.pop("onJobFailureMessagePatterns", None)
        with self.lock:
            if (kind, name) in self.objects:
                raise Refused(409, "AlreadyExists", f'{kind} "{name}" already exists')
            if kind == "pods":
                self.require_quota(given)
            number = next(self.counter)
            given["metadata"] |= {
                "uid": f"00000000-0000-0000-0000-{number:012d}",
                "namespace": "default",
                "creationTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "resourceVersion": str(number),
            }
            if kind == "jobs":
                given["status"] = {"active": 0, "ready": 0, "succeeded": 0, "failed": 0}
            if not dry_run:
                self.objects[kind, name] = given
                self.publish()
            return copy.deepcopy(given)

    def get(self, kind: str, name: str) -> Object:
        with self.lock:
            if (found := self.objects.get((kind, name))) is None:
                raise Refused(404, "NotFound", f'{kind} "{name}" not found')
            return copy.deepcopy(found)

    def list(self, kind: str, selector: str = "") -> list[Object]:
        with self.lock:
            return copy.deepcopy([o for (k, _), o in self.objects.items() if k == kind and _selected(o, selector)])

    def patch(self, kind: str, name: str, given: Object) -> Object:
        with self.lock:
            self.get(kind, name)
            self.objects[kind, name]["metadata"] |= given["metadata"]
            self.publish()
            return self.get(kind, name)

    def owned(self, owner: Object) -> list[Key]:
        """Return what belongs to an object."""
        uid = owner["metadata"]["uid"]
        return [
            key
            for key, other in self.objects.items()
            if any(o["uid"] == uid for o in other["metadata"].get("ownerReferences", []))
        ]

    def require_quota(self, pod: Object) -> None:
        """Refuse a pod that a quota has no room for."""
        for (kind, name), quota in self.objects.items():
            hard = quota.get("spec", {}).get("hard", {})
            if kind == "resourcequotas" and "pods" in hard:
                used = sum(
                    1
                    for (other, _), o in self.objects.items()
                    if other == "pods" and o["status"]["phase"] in ("Pending", "Running")
                )
                quota["status"] = {"hard": hard, "used": {"pods": str(used)}}
                if used + 1 > int(hard["pods"]):
                    raise Refused(
                        403, "Forbidden", f'pods "{pod["metadata"]["name"]}" is forbidden: exceeded quota: {name}'
                    )

    # What has happened

    def publish(self) -> None:
        """Give what has changed a new version, and tell those who watch."""
        with self.lock:
            for key, found in self.objects.items():
                body = json.dumps({**found, "metadata": {**found["metadata"], "resourceVersion": None}})
                if self._published.get(key) != body:
                    version = next(self.counter)
                    found["metadata"]["resourceVersion"] = str(version)
                    change = "MODIFIED" if key in self._published else "ADDED"
                    self.events.append((version, change, key[0], copy.deepcopy(found)))
                    self._published[key] = body
            for key in self._published.keys() - self.objects.keys():
                gone = json.loads(self._published.pop(key))
                version = next(self.counter)
                gone["metadata"]["resourceVersion"] = str(version)
                self.events.append((version, "DELETED", key[0], gone))

    def compact(self) -> None:
        """Forget what has happened so far, and end all watches: whoever goes on from there is answered with 410."""
        with self.lock:
            self.oldest = next(self.counter)
            self.events.clear()
            self.watch_generation += 1

    def watch(self, kind: str, selector: str, version: int) -> Iterator[Object]:
        """Yield changes from a version on."""
        generation = self.watch_generation
        if version < self.oldest:
            raise Refused(410, "Expired", f"too old resource version: {version} ({self.oldest})")
        while self.watch_generation == generation:
            with self.lock:
                news = [e for e in self.events if e[0] > version]
            for number, change, of, found in news:
                version = number
                if of == kind and _selected(found, selector):
                    yield {"type": change, "object": found}
            time.sleep(0.02)


def _selected(found: Object, selector: str) -> bool:
    wanted = dict(part.split("=", 1) for part in selector.split(",") if part)
    return wanted.items() <= found["metadata"].get("labels", {}).items()


class Server:
    """Answers HTTP on loopback.

    Args:
        store: the objects.
        end: deletes one, by kind, name, propagation policy and grace period.
        evict: evicts a pod.
    """

    def __init__(self, store: Store, end: Any, evict: Any) -> None:
        def answer(handler: BaseHTTPRequestHandler, path: str, query: Mapping[str, str], given: Object) -> Any:
            group, kind, name, action = _parsed(path, store)
            key = (handler.command, kind)
            store.questions[key] = store.questions.get(key, 0) + 1
            match handler.command, name, action:
                case "POST", None, None:
                    return 201, store.create(kind, given, query.get("dryRun") == "All")
                case "POST", _, "eviction":
                    return 201, evict(name)
                case "GET", None, None if query.get("watch"):
                    return 200, store.watch(
                        kind, query.get("labelSelector", ""), int(query.get("resourceVersion", "0"))
                    )
                case "GET", None, None:
                    with store.lock:
                        items = store.list(kind, query.get("labelSelector", ""))
                        fields = dict(part.split("=") for part in query.get("fieldSelector", "").split(",") if part)
                        items = [item for item in items if all(item.get(k) == v for k, v in fields.items())]
                        version = str(next(store.counter))
                    listed = {"kind": f"{_KIND[kind]}List", "apiVersion": group.partition("/")[2]}
                    return 200, {**listed, "metadata": {"resourceVersion": version}, "items": items}
                case "GET", _, None:
                    return 200, store.get(kind, name)
                case "PATCH", _, None:
                    return 200, store.patch(kind, name, given)
                case "DELETE", _, None:
                    options = {**query, **given}  # it takes them from both
                    grace = options.get("gracePeriodSeconds")
                    return 200, end(
                        kind, name, options.get("propagationPolicy"), None if grace is None else float(grace)
                    )
            raise Refused(405, "MethodNotAllowed", handler.command)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self) -> None:
                url = urlparse(self.path)
                query = {k: v[0] for k, v in parse_qs(url.query).items()}
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                try:
                    if time.monotonic() < store.refuses_until:
                        raise Refused(503, "ServiceUnavailable", "the server is currently unable to handle the request")
                    code, said = answer(self, url.path, query, json.loads(body) if body else {})
                    if isinstance(said, Iterator):
                        return self._stream(said)
                except Refused as refused:
                    code, said = refused.status["code"], refused.status
                content = json.dumps(said).encode()
                self._head(code, {"Content-Length": str(len(content))})
                self.wfile.write(content)
                return None

            def _stream(self, events: Iterator[Object]) -> None:
                self._head(200, {"Transfer-Encoding": "chunked"})
                try:
                    for event in events:
                        line = json.dumps(event).encode() + b"\n"
                        self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                except Refused as refused:
                    line = json.dumps({"type": "ERROR", "object": refused.status}).encode() + b"\n"
                    self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                except OSError:
                    return
                self.wfile.write(b"0\r\n\r\n")

            def _head(self, code: int, headers: Mapping[str, str]) -> None:
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                for key, value in headers.items():
                    self.send_header(key, value)
                self.end_headers()

            do_GET = do_POST = do_PATCH = do_DELETE = _handle

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True

    def write_kubeconfig(self, path: Path) -> None:
        """Write down how this server is reached."""
        context = {"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "default"}}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [context],
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.http.server_port}"}}],
            "users": [{"name": "u", "user": {"token": "x"}}],
        }
        path.write_text(yaml.safe_dump(config))


def _parsed(path: str, store: Store) -> tuple[str, str, str | None, str | None]:
    found = re.fullmatch(r"/(.+)/namespaces/default/([a-z]+)(?:/([-a-z0-9]+)(?:/([a-z]+))?)?", path)
    if found is None or found[2] not in GROUPS.get(found[1], ()) or found[2] not in store.installed:
        raise Refused(404, "NotFound", "the server could not find the requested resource")
    return found[1], found[2], found[3], found[4]
