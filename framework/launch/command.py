"""`python -m framework jobs`: what was sent to a cluster, from any terminal that sees the run directories."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from framework.errors import UserError
from framework.record.console import aligned
from framework.record.run import RunRecord

from .backend import Phase
from .cluster import ClusterBackend, ClusterLauncher, cluster_launcher
from .jobs import HANDLE, JOB, LOG, Job, Status
from .submission import FOLDER, follow, is_over, raise_unless_well


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command `jobs`."""
    jobs = commands.add_parser("jobs", help="look after jobs on a cluster")
    verbs = jobs.add_subparsers(required=True, metavar="ACTION")
    listing = verbs.add_parser("ls", help="list jobs")
    listing.add_argument(
        "path", type=Path, nargs="?", default=Path("outputs"), help="where runs lie (default: outputs)"
    )
    listing.set_defaults(command=list_jobs)
    for name, work, text in (
        ("status", status, "where a job, or each of a sweep, is"),
        ("logs", logs, "what a job has printed"),
        ("cancel", cancel, "have a job save its state and end"),
        ("collect", collect, "wait for jobs, and say how each ended"),
        ("resubmit", resubmit, "send a job that is over again; it goes on from its checkpoint"),
    ):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("path", type=Path, help="a run directory, a sweep's, or a job's folder")
        if name == "logs":
            verb.add_argument("-f", "--follow", action="store_true", help="go on until it ends")
        verb.set_defaults(command=work)


def jobs_in(path: Path) -> list[Job]:
    """Return the job of a run, or all of a sweep.

    Raises:
        UserError: when there is none.
    """
    places = [path, path / FOLDER]
    if (path / "trials").is_dir():
        places = sorted((path / "trials").iterdir(), key=lambda p: int(p.name) if p.name.isdecimal() else -1)
    found = [Job(place) for place in places if (place / JOB).is_file()]
    if not found:
        raise UserError(f"`{path}` holds no job: it is neither the directory of a run that was sent to a cluster, nor "
                        "a sweep's; `python -m framework jobs ls` lists some")  # fmt: skip
    return found


def backend_of(job: Job) -> ClusterBackend:
    """Return the backend that a job was submitted to, made again from what was written down."""
    if job.notes.get("launcher") is None:
        raise UserError(f"`{job.folder}` was run on this machine, by a sweep; its own command looks after it")
    return _backend(json.dumps([job.notes["launcher"], job.notes["where"]]))


@cache
def _backend(written: str) -> ClusterBackend:
    """Return the backend of all jobs of which the same was written down."""
    node, where = json.loads(written)
    launcher = cluster_launcher(node)
    assert isinstance(launcher, ClusterLauncher)
    launcher.send_to(where)
    return launcher.backend(1, Path(where["folder"]))


def _states(jobs: Sequence[Job]) -> list[str]:
    """Return where jobs are; each cluster is asked once for all of its own."""
    found: dict[Path, str] = {}
    asked: dict[ClusterBackend, list[Job]] = {}
    for job in jobs:
        result = job.result()
        if result is not None and result.status.is_final:
            found[job.folder] = str(result.status)
        elif not (job.folder / HANDLE).exists():
            found[job.folder] = "not submitted"
        else:
            asked.setdefault(backend_of(job), []).append(job)
    for backend, its in asked.items():
        try:
            states = backend.states(its)
        except UserError as error:  # what is known of others is shown all the same
            states = [f"unknown ({error})"] * len(its)
        for job, state in zip(its, states, strict=True):
            result = job.result()
            found[job.folder] = f"{state}, {result.status} before" if result is not None else state
    return [found[job.folder] for job in jobs]


def list_jobs(arguments: argparse.Namespace) -> None:
    """`jobs ls`."""
    rows = [["job", "where", "state", "attempts"]]
    jobs = list(_all_below(arguments.path))
    for job, state in zip(jobs, _states(jobs), strict=True):
        rows.append([job.notes.get("title", ""), str(_shown(job)), state, str(job.attempts)])
    print(aligned(rows) if len(rows) > 1 else f"no jobs of a cluster below `{arguments.path}`")


def _all_below(path: Path) -> Iterator[Job]:
    for file in sorted([*path.glob(f"*/*/{FOLDER}/{JOB}"), *path.glob(f"sweeps/*/trials/*/{JOB}")]):
        with suppress(UserError):
            if (job := Job(file.parent)).notes.get("launcher") is not None:
                yield job


def _shown(job: Job) -> Path:
    place = job.folder.parent if job.folder.name == FOLDER else job.folder
    with suppress(ValueError):
        return place.relative_to(Path.cwd())
    return place


def status(arguments: argparse.Namespace) -> None:
    """`jobs status`."""
    jobs = jobs_in(arguments.path)
    for job, state in zip(jobs, _states(jobs), strict=True):
        result = job.result()
        lines = {"where": str(_shown(job)), "state": state}
        with suppress(OSError, json.JSONDecodeError):
            lines["handle"] = json.loads((job.folder / HANDLE).read_text(encoding="utf-8"))["id"]
        if result is not None:
            lines |= {"result": str(result.status), "exit code": str(result.exit_code)}
            lines |= {"why": result.error} if result.error else {}
        if (run := job.config().get("run_dir")) and (Path(run) / "run.json").exists():
            stages = RunRecord(Path(run))["stages"]
            lines["stages"] = ", ".join(f"{name} {stage['status']}" for name, stage in stages.items()) or "none yet"
        print("\n".join(f"{key:10} {value}" for key, value in lines.items()))
        print()


def logs(arguments: argparse.Namespace) -> None:
    """`jobs logs`."""
    (job, *others) = jobs_in(arguments.path)
    if others:
        raise UserError(f"`{arguments.path}` holds {len(others) + 1} jobs; name one, as in {job.folder}")
    if arguments.follow:
        raise_unless_well(follow(job, backend_of(job)))
    elif (job.folder / LOG).exists():
        sys.stdout.write((job.folder / LOG).read_text(encoding="utf-8", errors="replace"))


def cancel(arguments: argparse.Namespace) -> None:
    """`jobs cancel`."""
    for job in jobs_in(arguments.path):
        backend = backend_of(job)
        if backend.phases([job]) == [Phase.gone]:
            print(f"{_shown(job)}: is over")
            continue
        of_sweep = "number" in job.notes  # whose controller would begin a trial again that was only stopped
        job.ask_to_stop(Status.failed if of_sweep else Status.cancelled, "cancelled by `jobs cancel`")
        backend.stop(job)
        print(f"{_shown(job)}: asked to save its state and end")


def collect(arguments: argparse.Namespace) -> None:
    """`jobs collect`."""
    ended = []
    for job in jobs_in(arguments.path):
        backend = backend_of(job)
        while backend.phases([job]) != [Phase.gone]:
            backend.wait(1.0)
        result = job.result()
        text = f"{result.status}{f': {result.error}' if result.error else ''}" if result else "ended without a word"
        print(f"{_shown(job)}: {text}")
        ended.append(result)
    raise_unless_well(next((r for r in ended if r is None or r.exit_code), ended[0]))


def resubmit(arguments: argparse.Namespace) -> None:
    """`jobs resubmit`."""
    for job in jobs_in(arguments.path):
        backend = backend_of(job)
        result = job.result()
        if result is not None and result.status is Status.completed:
            print(f"{_shown(job)}: is completed")
        elif (job.folder / HANDLE).exists() and not is_over(job, backend):
            print(f"{_shown(job)}: is not over")
        else:
            job.begin_again()
            backend.submit(job)
            print(f"{_shown(job)}: {backend.states([job])[0]}")
