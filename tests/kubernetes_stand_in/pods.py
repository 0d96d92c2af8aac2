"""The nodes: pods as processes of this machine, in namespaces of their own where there is bubblewrap.

There a pod's process is number 1, as the user that the pod says, without rights; it can write to nothing but the volumes
and empty folders that are mounted, and sees of `/tmp` and `/dev/shm` nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import IO

from .api import Object, Store

_BUBBLEWRAP = shutil.which("bwrap")


class Nodes:
    """Runs pods.

    Args:
        store: of the API server.
        folder: for what pods print.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        assert _BUBBLEWRAP or not os.environ.get("CI"), "bubblewrap is not installed"
        self.store, self.folder = store, folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._first: dict[str, int] = {}  # the process that is number 1 of a pod
        self._reports: dict[str, IO[bytes]] = {}

    def start(self, pod: Object) -> None:
        """Start the container of a pod, or start it again."""
        name, spec = pod["metadata"]["name"], pod["spec"]
        container = spec["containers"][0]
        if spec.get("nodeSelector"):
            said = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
            scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said}
            pod["status"]["conditions"] = [scheduled]
            return
        if container["image"].startswith("nowhere/"):
            said = f'Back-off pulling image "{container["image"]}"'
            waiting = {"waiting": {"reason": "ImagePullBackOff", "message": said}}
            pod["status"]["containerStatuses"] = [_container(container, waiting, ready=False)]
            return
        reading, writing = os.pipe()
        with (self.folder / f"{name}.txt").open("ab") as output:
            self.processes[name] = subprocess.Popen(
                [*_sandbox(spec, writing), *container["command"]],
                cwd=container.get("workingDir"),
                env=self._environment(pod),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=[writing],
            )
        os.close(writing)
        self._reports[name] = os.fdopen(reading, "rb")  # open to the end, or telling how it ends would kill it
        said = self._reports[name].readline() if _BUBBLEWRAP else b""
        self._first[name] = json.loads(said)["child-pid"] if said else self.processes[name].pid
        pod["status"] |= {"phase": "Running", "containerStatuses": [_container(container, {"running": {}}, ready=True)]}

    def _environment(self, pod: Object) -> dict[str, str]:
        spec, known = pod["spec"], {"PATH": os.environ["PATH"]}
        container = spec["containers"][0]
        known |= {k: os.environ[k] for k in ("LD_LIBRARY_PATH", "VIRTUAL_ENV") if k in os.environ}
        for source in container.get("envFrom", []):
            known |= self.store.objects["secrets", source["secretRef"]["name"]]["stringData"]
        known |= {e["name"]: e.get("value", "") for e in container.get("env", [])}
        if (index := index_of(pod)) is not None:
            known["JOB_COMPLETION_INDEX"] = str(index)
        subdomain, job = spec.get("subdomain"), pod["metadata"]["labels"].get("batch.kubernetes.io/job-name")
        for key, value in known.items():  # cluster DNS
            if subdomain and value == f"{job}-0.{subdomain}" and ("services", subdomain) in self.store.objects:
                known[key] = "127.0.0.1"
        return known

    def end(self, name: str, grace_s: float | None = None) -> None:
        """Have a pod end: process 1 of it is told, and all of it killed after its grace period."""
        process, pod = self.processes.get(name), self.store.objects["pods", name]
        pod["metadata"]["deletionTimestamp"] = pod["metadata"].get("deletionTimestamp", "2026-01-01T00:00:00Z")
        if process is None or process.poll() is not None:
            return
        grace = pod["spec"].get("terminationGracePeriodSeconds", 30) if grace_s is None else grace_s
        if grace:
            os.kill(self._first[name], signal.SIGTERM)
        killer = threading.Timer(grace, lambda: process.poll() is None and os.killpg(process.pid, signal.SIGKILL))
        killer.daemon = True
        killer.start()

    def ended(self) -> list[tuple[Object, int]]:
        """Return the pods that have ended, and with what; those that begin again in place are started."""
        found = []
        for name, process in list(self.processes.items()):
            if process.poll() is None:
                continue
            del self.processes[name]
            self._reports.pop(name).close()
            pod = self.store.objects["pods", name]
            code = process.returncode if process.returncode >= 0 else 128 - process.returncode
            leaving = "deletionTimestamp" in pod["metadata"] or pod["status"].get("conditions")
            if code and pod["spec"].get("restartPolicy", "Always") == "OnFailure" and not leaving:
                self.start(pod)
                continue
            reason = "Completed" if code == 0 else "OOMKilled" if code == 137 else "Error"
            over = {"terminated": {"exitCode": code, "reason": reason, "startedAt": None, "finishedAt": None}}
            pod["status"] |= {
                "phase": "Succeeded" if code == 0 else "Failed",
                "containerStatuses": [_container(pod["spec"]["containers"][0], over, ready=False)],
            }
            found.append((pod, code))
        return found

    def close(self) -> None:
        """Kill what runs."""
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _sandbox(spec: Object, report: int) -> list[str]:
    """Return the start of a command that runs in the namespaces of a pod, and tells of its process 1 to `report`."""
    if _BUBBLEWRAP is None:
        return []
    container, user = spec["containers"][0], str(spec.get("securityContext", {}).get("runAsUser", 0))
    root = "--ro-bind" if container.get("securityContext", {}).get("readOnlyRootFilesystem") else "--bind"
    command = [_BUBBLEWRAP, "--unshare-user", "--uid", user, "--gid", user, "--unshare-pid", "--as-pid-1"]
    command += [root, "/", "/", "--proc", "/proc", "--dev", "/dev", "--json-status-fd", str(report)]
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    mounts = [(mount["mountPath"], volumes[mount["name"]]) for mount in container.get("volumeMounts", [])]
    for path, volume in sorted(mounts, key=lambda mount: len(Path(mount[0]).parts)):
        if "emptyDir" in volume:
            command += ["--tmpfs", path]
        else:  # each claim is this machine's disk
            command += ["--bind", volume.get("hostPath", {}).get("path", path), path]
    return command


def index_of(pod: Object) -> int | None:
    """Return a pod's completion index."""
    text = pod["metadata"].get("labels", {}).get("batch.kubernetes.io/job-completion-index")
    return None if text is None else int(text)


def _container(container: Object, state: Object, ready: bool) -> Object:
    return {
        "name": container["name"], "state": state, "ready": ready, "restartCount": 0, "image": "", "imageID": "",
    }  # fmt: skip
