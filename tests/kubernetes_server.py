"""A stand-in for a Kubernetes cluster, which cannot be had on one machine: an API server and a Job controller.

It speaks HTTP as the API server does, as far as jobs need it, and runs the pods of Indexed Jobs as processes of this
machine. What it does follows what was read off a real 1.36 cluster:

* objects get a uid, a resourceVersion and a creation time; a second one of a name is refused with 409; manifests are
  validated against the published schemas (`kubernetes-validate`, strict), and names by their length, and refused with
  422; `dryRun=All` does all that and keeps nothing; lists take label selectors;
* deleting a Job without a propagation policy leaves its pods; with `Background` they get SIGTERM, and SIGKILL after
  their grace period; deleting a pod is no disruption, evicting one is (condition `DisruptionTarget`);
* a pod that ends is judged by `podFailurePolicy`, rule by rule, else counted against `backoffLimit`; one for each index
  that has not succeeded; a suspended Job has none; `activeDeadlineSeconds` ends one;
* a pod's environment: `env`, the Secrets of `envFrom`, and `JOB_COMPLETION_INDEX`. The name of a pod behind a headless
  Service becomes this machine's address, if the Service is there.

What only a real cluster can show: images, volumes, security contexts, resources and scheduling, real names and
networks, admission by Kueue, the true back-off between replaced pods (10 s and more; here 0.2 s), watches (nothing of
ours uses any), rights (RBAC).
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import kubernetes_validate
import yaml

VERSION = "1.36"
_REPLACE_S, _TICK_S = 0.2, 0.05
Object = dict[str, Any]


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = {
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message,
        }  # fmt: skip


class Cluster:
    """The objects of a cluster, and the processes of its pods.

    Args:
        folder: for what pods print.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        self.objects: dict[tuple[str, str], Object] = {}
        self.processes: dict[str, subprocess.Popen] = {}
        self.ready_again: dict[tuple[str, int], float] = {}
        self.counter = itertools.count(1)
        self.away_until = 0.0
        self.submitted = 0
        self.over = threading.Event()

    # The API

    def create(self, kind: str, given: Object, dry_run: bool) -> Object:
        name = given["metadata"]["name"]
        try:
            kubernetes_validate.validate(given, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            raise Refused(422, "Invalid", str(error)) from None
        longest = 63 - 8 if kind == "jobs" else 63  # the controller adds an index and five letters
        if not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > longest:
            raise Refused(422, "Invalid", f"metadata.name: Invalid value: {name!r}")
        if kind == "jobs":
            self._validate_job(given)
        with self.lock:
            if (kind, name) in self.objects:
                raise Refused(409, "AlreadyExists", f'{kind} "{name}" already exists')
            number = next(self.counter)
            given["metadata"] |= {
                "uid": f"00000000-0000-0000-0000-{number:012d}",
                "resourceVersion": str(number),
                "namespace": "default",
                "creationTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            if kind == "jobs":
                given["status"] = {"active": 0, "ready": 0, "succeeded": 0, "failed": 0}
            if not dry_run:
                self.objects[kind, name] = given
                self.submitted += kind == "jobs"
        return given

    @staticmethod
    def _validate_job(given: Object) -> None:
        """Refuse what the schemas let through and the API server does not."""
        spec, pod = given["spec"], given["spec"]["template"]["spec"]
        if "podFailurePolicy" in spec and pod.get("restartPolicy") != "Never":
            raise Refused(422, "Invalid", "spec.template.spec.restartPolicy: must be Never with a podFailurePolicy")
        for container in pod["containers"]:
            resources = container.get("resources", {})
            for name, limit in resources.get("limits", {}).items():
                if "/" in name and resources.get("requests", {}).get(name, limit) != limit:
                    raise Refused(422, "Invalid", f"resources.requests: must equal the limit of {name}")

    def get(self, kind: str, name: str) -> Object:
        with self.lock:
            if (found := self.objects.get((kind, name))) is None:
                raise Refused(404, "NotFound", f'{kind} "{name}" not found')
            return json.loads(json.dumps(found))

    def list(self, kind: str, selector: str) -> list[Object]:
        wanted = dict(part.split("=", 1) for part in selector.split(",") if part)
        with self.lock:
            found = [o for (k, _), o in self.objects.items() if k == kind]
            return json.loads(
                json.dumps([o for o in found if wanted.items() <= o["metadata"].get("labels", {}).items()])
            )

    def patch(self, kind: str, name: str, given: Object) -> Object:
        with self.lock:
            self.get(kind, name)
            self.objects[kind, name]["metadata"] |= given["metadata"] | {"resourceVersion": str(next(self.counter))}
            return self.get(kind, name)

    def delete(self, kind: str, name: str, policy: str | None) -> Object:
        with self.lock:
            found = self.get(kind, name)
            if kind == "pods":
                self._end(name)
                return found
            del self.objects[kind, name]
            if kind == "jobs" and policy in ("Background", "Foreground"):
                for pod in self.pods_of(name):
                    self._end(pod["metadata"]["name"])
                for key, other in list(self.objects.items()):
                    owners = other["metadata"].get("ownerReferences", [])
                    if any(owner["uid"] == found["metadata"]["uid"] for owner in owners) and key[0] != "pods":
                        del self.objects[key]
            return found

    # Pods

    def pods_of(self, job: str) -> list[Object]:
        return [o for (k, _), o in self.objects.items() if k == "pods" and o["metadata"]["labels"]["job"] == job]

    def evict(self, job: str, index: int) -> None:
        """Disrupt a pod as a drained node, or a preemption, does."""
        with self.lock:
            (pod,) = [p for p in self.pods_of(job) if _index(p) == index and p["status"]["phase"] == "Running"]
            pod["status"]["conditions"] = [
                {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
            ]
            self._end(pod["metadata"]["name"])

    def lose(self, job: str, index: int) -> None:
        """Kill a pod's processes, as the kernel does for want of memory."""
        with self.lock:
            (pod,) = [p for p in self.pods_of(job) if _index(p) == index and p["status"]["phase"] == "Running"]
            os.killpg(self.processes[pod["metadata"]["name"]].pid, signal.SIGKILL)

    def _end(self, name: str) -> None:
        process, pod = self.processes.get(name), self.objects["pods", name]
        if process is not None and process.poll() is None:
            process.terminate()  # process 1 of the pod alone
            grace = pod["spec"].get("terminationGracePeriodSeconds", 30)
            killer = threading.Timer(grace, lambda: process.poll() is None and os.killpg(process.pid, signal.SIGKILL))
            killer.daemon = True
            killer.start()

    def control(self) -> None:
        """Be the Job controller and the nodes, until it is over."""
        while not self.over.wait(_TICK_S):
            with self.lock:
                self._reap()
                for (kind, name), job in list(self.objects.items()):
                    if kind == "jobs" and not job["status"].get("conditions"):
                        self._reconcile(name, job)

    def _reap(self) -> None:
        for name, process in list(self.processes.items()):
            if process.poll() is None:
                continue
            del self.processes[name]
            pod = self.objects["pods", name]
            code = process.returncode if process.returncode >= 0 else 128 - process.returncode
            reason = "Completed" if code == 0 else "OOMKilled" if code == 137 else "Error"
            ended = {"terminated": {"exitCode": code, "reason": reason, "startedAt": None, "finishedAt": None}}
            pod["status"] |= {
                "phase": "Succeeded" if code == 0 else "Failed",
                "containerStatuses": [_container("worker", ended, ready=False)],
            }
            job = self.objects.get(("jobs", pod["metadata"]["labels"]["job"]))
            if job is not None and not job["status"].get("conditions"):
                self._judge(job, pod, code)

    def _judge(self, job: Object, pod: Object, code: int) -> None:
        status, index = job["status"], _index(pod)
        if code == 0:
            status["succeeded"] += 1
            return
        for rule in job["spec"].get("podFailurePolicy", {}).get("rules", []):
            codes, patterns = rule.get("onExitCodes"), rule.get("onPodConditions", [])
            conditions = {(c["type"], c["status"]) for c in pod["status"].get("conditions", [])}
            if (codes and code in codes["values"]) or any((p["type"], p["status"]) in conditions for p in patterns):
                if rule["action"] == "FailJob":
                    self._fail(job, "PodFailurePolicy", f"Container worker failed with exit code {code}")
                if rule["action"] in ("FailJob", "Ignore"):
                    self.ready_again[job["metadata"]["name"], index] = time.monotonic() + _REPLACE_S
                    return
        status["failed"] += 1
        self.ready_again[job["metadata"]["name"], index] = time.monotonic() + _REPLACE_S
        if status["failed"] > job["spec"].get("backoffLimit", 6):
            self._fail(job, "BackoffLimitExceeded", "Job has reached the specified backoff limit")

    def _fail(self, job: Object, reason: str, message: str) -> None:
        job["status"]["conditions"] = [{"type": "Failed", "status": "True", "reason": reason, "message": message}]
        for pod in self.pods_of(job["metadata"]["name"]):
            self._end(pod["metadata"]["name"])

    def _reconcile(self, name: str, job: Object) -> None:
        spec, status, pods = job["spec"], job["status"], self.pods_of(name)
        done = {_index(p) for p in pods if p["status"]["phase"] == "Succeeded"}
        alive = {_index(p) for p in pods if p["status"]["phase"] == "Running"}
        if spec.get("suspend"):
            return
        status["active"] = status["ready"] = len(alive)
        if len(done) == spec["completions"]:
            status["conditions"] = [{"type": "Complete", "status": "True"}]
            return
        began = status.setdefault("startTime", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        since = time.time() - time.mktime(time.strptime(began, "%Y-%m-%dT%H:%M:%SZ")) + time.timezone
        if (deadline := spec.get("activeDeadlineSeconds")) is not None and since > deadline:
            self._fail(job, "DeadlineExceeded", "Job was active longer than specified deadline")
            return
        for index in range(spec["completions"]):
            if index not in done | alive and self.ready_again.get((name, index), 0) <= time.monotonic():
                self._start(name, job, index)

    def _start(self, name: str, job: Object, index: int) -> None:
        template = job["spec"]["template"]
        number = next(self.counter)
        pod_name = f"{name}-{index}-{number:05d}"
        container = template["spec"]["containers"][0]
        environment = {"PATH": os.environ["PATH"], "JOB_COMPLETION_INDEX": str(index)}
        environment |= {k: os.environ[k] for k in ("LD_LIBRARY_PATH", "VIRTUAL_ENV") if k in os.environ}
        for source in container.get("envFrom", []):
            environment |= self.get("secrets", source["secretRef"]["name"])["stringData"]
        environment |= {e["name"]: e.get("value", "") for e in container.get("env", [])}
        subdomain = template["spec"].get("subdomain")
        for key, value in environment.items():  # cluster DNS
            if subdomain and value == f"{name}-0.{subdomain}" and ("services", subdomain) in self.objects:
                environment[key] = "127.0.0.1"
        labels = {**template["metadata"].get("labels", {}), "job": name}
        pod = {
            "metadata": {
                "name": pod_name,
                "labels": labels,
                "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
                "uid": str(number),
                "resourceVersion": str(number),
            },
            "spec": template["spec"],
            "status": {"phase": "Running", "containerStatuses": [_container("worker", {"running": {}}, ready=True)]},
        }
        self.objects["pods", pod_name] = pod
        with (self.folder / f"{pod_name}.txt").open("wb") as output:
            self.processes[pod_name] = subprocess.Popen(
                container["command"],
                cwd=container["workingDir"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def close(self) -> None:
        self.over.set()
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _index(pod: Object) -> int:
    return int(pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"])


def _container(name: str, state: Object, ready: bool) -> Object:
    return {"name": name, "state": state, "ready": ready, "restartCount": 0, "image": "", "imageID": ""}


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Run a cluster; `folder/kubeconfig` says how to reach it."""
    cluster = Cluster(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            url = urlparse(self.path)
            query = {k: v[0] for k, v in parse_qs(url.query).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            given = json.loads(body) if body else {}
            try:
                if time.monotonic() < cluster.away_until:
                    raise Refused(503, "ServiceUnavailable", "the server is currently unable to handle the request")
                code, answer = self._answer(url.path, query, given)
            except Refused as refused:
                code, answer = refused.status["code"], refused.status
            content = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _answer(self, path: str, query: dict[str, str], given: Object) -> tuple[int, Object]:
            found = re.fullmatch(r"/(?:api/v1|apis/batch/v1)/namespaces/default/([a-z]+)(?:/([-a-z0-9]+))?", path)
            if found is None:
                raise Refused(404, "NotFound", f"the server could not find the requested resource: {path}")
            kind, name = found.groups()
            match self.command, name:
                case "POST", None:
                    return 201, cluster.create(kind, given, query.get("dryRun") == "All")
                case "GET", None:
                    return 200, {
                        "kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"},
                        "items": cluster.list(kind, query.get("labelSelector", "")),
                    }  # fmt: skip
                case "GET", _:
                    return 200, cluster.get(kind, name)
                case "PATCH", _:
                    return 200, cluster.patch(kind, name, given)
                case "DELETE", _:
                    return 200, cluster.delete(kind, name, given.get("propagationPolicy"))
            raise Refused(405, "MethodNotAllowed", self.command)

        do_GET = do_POST = do_PATCH = do_DELETE = _handle

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threads = [threading.Thread(target=work, daemon=True) for work in (server.serve_forever, cluster.control)]
    for thread in threads:
        thread.start()
    context = {"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "default"}}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [context],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "u", "user": {"token": "x"}}],
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    try:
        yield cluster
    finally:
        server.shutdown()
        cluster.close()
