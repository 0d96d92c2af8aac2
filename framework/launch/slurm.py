"""Jobs on SLURM: one batch script for each, or an array for many, submitted and asked after in batches.

The script runs `python -m framework.launch.worker` once on each node, and decides about requeueing alone: a job that
saved its state (exit code 75) is requeued without being counted, what the user did wrong (2) ends, anything else is
tried again some times. What is needed to find a job again is its number, in `handle.json`.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which

from framework.errors import EXIT_PREEMPTED, EXIT_USER, UserError
from framework.record.files import write_atomic, write_json

from .backend import Phase
from .jobs import FAILURES, HANDLE, LIST, LOG, STOP, Job, Status
from .remote import Remote

SCRIPT = "job.sh"
_POLL_S, _WAIT_S, _HASTEN_S = 1.0, 0.5, 5.0
_OVER = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
    "REVOKED", "TIMEOUT",
)  # fmt: skip
SURE_AFTER = 3  # questions: a job that is requeued is over for a moment


@dataclass(frozen=True)
class Resources:
    """What a job asks SLURM for; each is an option of `sbatch`, and None leaves it to SLURM.

    Args:
        partition, account, qos, constraint, reservation: see `sbatch`.
        time: wall-clock limit: `30m`, `4h`, `2d`, minutes, or SLURM's `D-HH:MM:SS`.
        nodes: of each job.
        gpus_per_node, cpus_per_node: of each node.
        memory: of each node, as in `16G`.
        extra: further options by name; true for those without a value.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    time: str | int | None = None
    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_node: int | None = None
    memory: str | None = None
    extra: Mapping[str, str | int | bool] = field(default_factory=dict)

    def options(self) -> dict[str, str | int | bool]:
        """Return them as options of `sbatch`."""
        named = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "reservation": self.reservation,
            "time": None if self.time is None else minutes(self.time),
            "nodes": self.nodes,
            "ntasks-per-node": 1,
            "gpus-per-node": self.gpus_per_node or None,
            "cpus-per-task": self.cpus_per_node,
            "mem": self.memory,
            **self.extra,
        }
        return {key: value for key, value in named.items() if value is not None and value is not False}

    def cost(self, jobs: int) -> str:
        """Return one line on what jobs may take at most."""
        hours = None if self.time is None else _hours(minutes(self.time))
        text = f"{jobs:,} {'job' if jobs == 1 else 'jobs'} x {self.nodes} {'node' if self.nodes == 1 else 'nodes'}"
        if hours is None:
            return f"{text}, without a time limit of their own"
        text += f" x {hours:.3g} h = {jobs * self.nodes * hours:.3g} node hours"
        return f"{text}, {jobs * self.nodes * hours * self.gpus_per_node:.3g} GPU hours" if self.gpus_per_node else text


def minutes(time: str | int) -> str | int:
    """Return a time as `sbatch` takes it.

    Raises:
        UserError: when it is none.
    """
    text = str(time)
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(m|min|h|d)", text):
        return max(1, round(float(found[1]) * {"m": 1, "min": 1, "h": 60, "d": 1440}[found[2]]))
    if re.fullmatch(r"\d+|\d+-\d+(:\d+){0,2}|\d+(:\d+){1,2}", text):
        return text
    raise UserError(f"hydra.launcher.time: `{text}` is no time; write 30m, 4h, 2d, or D-HH:MM:SS")


def _hours(time: str | int) -> float:
    days, _, clock = str(time).rpartition("-")
    parts = [float(p) for p in clock.split(":")]
    if days:
        parts = [*parts, 0.0, 0.0][:3]
        return float(days) * 24 + parts[0] + parts[1] / 60 + parts[2] / 3600
    if len(parts) == 3:
        return parts[0] + parts[1] / 60 + parts[2] / 3600
    return parts[0] / 60 + (parts[1] / 3600 if len(parts) == 2 else 0.0)


class SlurmBackend:
    """Runs jobs as SLURM's; see `Backend`.

    Args:
        slots: how many at once.
        resources: of each job.
        remote: how a job's process is started on a node.
        grace_s: so long before its time limit a job saves its state, and is requeued.
        retries: how often a job is tried again whose node, and not whose user, failed it.
        backoff_s: before the first of these; each waits twice as long as the one before.
    """

    def __init__(
        self,
        slots: int,
        resources: Resources,
        remote: Remote,
        grace_s: int = 120,
        retries: int = 2,
        backoff_s: int = 10,
    ) -> None:
        if which("sbatch") is None:
            raise UserError("hydra/launcher: slurm needs `sbatch`, and it is not on PATH; start this on a login node")
        self.slots, self.resources, self.remote = slots, resources, remote
        self.grace_s, self.retries, self.backoff_s = grace_s, retries, backoff_s
        self._states: dict[str, tuple[str, str]] = {}
        self._asked = 0.0
        self._over: dict[Path, int] = {}
        self._waiting: dict[Path, float] = {}

    # What is submitted

    def script(self, title: str, folders: Sequence[Path], place: Path, throttle: int | None = None) -> str:
        """Return the batch script of a job, or of an array of several whose folders `place/jobs.txt` lists."""
        several = len(folders) > 1
        options = {
            "job-name": title[:60],
            **self.resources.options(),
            "output": "/dev/null" if several else str(folders[0] / LOG),
            "open-mode": "append",
            "requeue": True,
            "kill-on-invalid-dep": "yes",
            "signal": f"USR1@{self.grace_s}",
        }
        if several:
            options["array"] = f"0-{len(folders) - 1}" + (f"%{throttle}" if throttle else "")
        lines = [f"#SBATCH --{key}" + ("" if value is True else f"={value}") for key, value in options.items()]
        folder = shlex.quote(str(folders[0]))
        if several:
            folder = f'"$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(str(place / LIST))})"'
        return f"""#!/bin/bash
{chr(10).join(lines)}

job={folder}
{self.remote.preamble()}
export FRAMEWORK_NODES=$SLURM_JOB_NUM_NODES
export FRAMEWORK_HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export FRAMEWORK_START=$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}
srun --ntasks-per-node=1 --kill-on-bad-exit=1 --output="$job/{LOG}" --open-mode=append \\
  bash -c 'trap "" USR1; export FRAMEWORK_NODE_RANK=$SLURM_NODEID; exec "$@"' node {self.remote.worker()} "$job"
code=$?  # USR1 is heard by the worker once it can; before, it must not end it

# Who saved its state goes on in another turn, unless it was asked to end; who failed by its own fault does not.
if [ $code -eq 0 ] || [ $code -eq {EXIT_USER} ] || [ -f "$job/{STOP}" ]; then exit $code; fi
if [ $code -ne {EXIT_PREEMPTED} ]; then
  failures=$(cat "$job/{FAILURES}" 2>/dev/null || echo 0)
  [ "$failures" -lt {self.retries} ] || exit $code
  echo $((failures + 1)) >"$job/{FAILURES}"
  sleep $(({self.backoff_s} << failures))
fi
scontrol requeue "$SLURM_JOB_ID"
exit $code
"""

    def check(self, title: str, place: Path) -> None:
        """Let SLURM judge such jobs without submitting one.

        Raises:
            UserError: when it refuses.
        """
        tried = _ask("sbatch", "--test-only", text=self.script(title, [place], place))
        if tried.returncode:
            reason = tried.stderr.strip().removeprefix("allocation failure: ")
            partitions = _ask("sinfo", "-h", "-o", "%R").stdout.split()
            there = f"; there are the partitions {', '.join(dict.fromkeys(partitions))}" if "artition" in reason else ""
            raise UserError(f"hydra.launcher: SLURM refuses such jobs: {reason}{there}")

    def write(self, jobs: Sequence[Job], place: Path, throttle: int | None = None) -> Path:
        """Write the batch script (and the list of jobs) without submitting; returns the script."""
        if len(jobs) > 1:
            write_atomic(place / LIST, "".join(f"{job.folder}\n" for job in jobs))
        write_atomic(place / SCRIPT, self.script(jobs[0].notes["title"], [j.folder for j in jobs], place, throttle))
        return place / SCRIPT

    def submit(self, job: Job) -> None:
        """Put a job into the queue."""
        self.submit_all([job], job.folder)

    def submit_all(self, jobs: Sequence[Job], place: Path, throttle: int | None = None) -> None:
        """Put jobs into the queue, several as one array of which `throttle` run at once."""
        done = _ask("sbatch", "--parsable", str(self.write(jobs, place, throttle)))
        if done.returncode:
            why = done.stderr.strip()
            if "array" in why:
                why += f" (is its MaxArraySize less than {len(jobs)}? hydra.launcher.wait=true knows no such limit)"
            raise UserError(f"hydra.launcher: SLURM refuses the job: {why}")
        number = done.stdout.strip().partition(";")[0]
        for index, job in enumerate(jobs):
            own = number if len(jobs) == 1 else f"{number}_{index}"
            write_json(job.folder / HANDLE, {"backend": "slurm", "id": own}, durable=False)
        self._asked = 0.0

    # Where jobs are

    def phases(self, jobs: Sequence[Job]) -> list[Phase]:
        """Return where jobs are; SLURM is asked once for all, at most once a second. A final result outranks it."""
        found: list[Phase | None] = [Phase.gone if _is_final(job) else None for job in jobs]
        if None in found:
            self._look([job for job, phase in zip(jobs, found, strict=True) if phase is None])
        return [self._phase(job) if phase is None else phase for job, phase in zip(jobs, found, strict=True)]

    def _phase(self, job: Job) -> Phase:
        state, reason = self._states.get(_number(job), ("GONE", ""))
        if reason == "BeginTime":
            self._hasten(job)
        else:
            self._waiting.pop(job.folder, None)
        if state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "SUSPENDED"):
            self._over.pop(job.folder, None)
            return Phase.waiting
        if state in _OVER or state == "GONE":
            result = job.result()
            said = result is not None and result.status is not Status.preempted
            return Phase.gone if said or self._over.get(job.folder, 0) >= SURE_AFTER else Phase.running
        self._over.pop(job.folder, None)
        return Phase.running

    def _hasten(self, job: Job) -> None:
        """Start a requeued job, which SLURM lets wait for two minutes; one that starts too soon is refused by its node,
        where it has not ended yet.
        """
        since = self._waiting.setdefault(job.folder, time.monotonic())
        if time.monotonic() - since > _HASTEN_S:
            del self._waiting[job.folder]
            _ask("scontrol", "update", f"JobId={_number(job)}", "StartTime=now")

    def _look(self, jobs: Sequence[Job]) -> None:
        wanted = {_number(job) for job in jobs}
        if time.monotonic() - self._asked < _POLL_S and wanted <= self._states.keys():
            return
        said = _ask("squeue", "-h", "-r", "--me", "-t", "all", "-o", "%i|%F_%K|%A|%T|%r")
        if said.returncode:  # the controller is away for a while: nothing is known, and nothing over
            return
        self._asked = time.monotonic()
        known = {}
        for line in said.stdout.splitlines():
            own, in_array, number, state, reason = line.split("|", 4)
            for name in {own, in_array, number}:
                known[name] = (state, reason)
        known |= _accounted(wanted - known.keys())
        self._states = dict.fromkeys(wanted, ("GONE", "")) | known
        for job in jobs:
            if self._states[_number(job)][0] in (*_OVER, "GONE"):
                self._over[job.folder] = self._over.get(job.folder, 0) + 1

    def states(self, jobs: Sequence[Job]) -> list[str]:
        """Return SLURM's own words for where jobs are."""
        self._look(jobs)
        return [self._state(job) for job in jobs]

    def _state(self, job: Job) -> str:
        state, reason = self._states.get(_number(job), ("GONE", ""))
        waits = state == "PENDING" and reason not in ("", "None")
        return f"{state.lower()} ({reason})" if waits else state.lower()

    def wait(self, seconds: float) -> None:
        """Wait a little; not so short that a shared file system is kept busy by looking for results."""
        time.sleep(max(seconds, _WAIT_S))

    def stop(self, job: Job) -> None:
        """Signal a job's processes; one that waits is taken out of the queue."""
        number = _number(job)
        if number:
            _ask("scancel", "--state=PENDING", number)
            _ask("scancel", "--signal=TERM", number)

    def kill(self, job: Job) -> None:
        """End a job at once."""
        if number := _number(job):
            _ask("scancel", "--signal=KILL", number)
            _ask("scancel", number)

    def why_gone(self, job: Job) -> str | None:
        """Return how SLURM says that a job ended."""
        self._over.pop(job.folder, None)
        state = self._states.get(_number(job), ("", ""))[0]
        return f"SLURM says {state}" if state in _OVER and state != "COMPLETED" else None

    def close(self) -> None:
        """Jobs go on."""


def _number(job: Job) -> str:
    with suppress(OSError, json.JSONDecodeError):
        return str(json.loads((job.folder / HANDLE).read_text(encoding="utf-8"))["id"])
    return ""


def _is_final(job: Job) -> bool:
    result = job.result()
    return result is not None and result.status.is_final


def _accounted(numbers: set[str]) -> dict[str, tuple[str, str]]:
    """Return the states of jobs that the queue has forgotten, where SLURM keeps accounts."""
    wanted = [n for n in numbers if n]
    if not wanted or which("sacct") is None:
        return {}
    said = _ask("sacct", "-n", "-P", "-X", "-j", ",".join(wanted), "-o", "JobID,State")
    lines = [line.split("|") for line in said.stdout.splitlines()] if said.returncode == 0 else []
    return {line[0]: (line[1].split()[0], "") for line in lines if len(line) == 2 and line[1]}


def _ask(*command: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)
