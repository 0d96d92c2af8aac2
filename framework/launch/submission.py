"""One experiment sent to a cluster: checked there, submitted, and followed until it ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

from framework.errors import EXIT_FAILED, EXIT_INTERRUPTED, Ended, UserError
from framework.record.run import RunRecord

from .backend import Phase
from .cluster import ClusterBackend, ClusterLauncher
from .jobs import HANDLE, LOG, Job, Result

FOLDER = "job"
_POLL_S, _STATE_S, _LOOKS = 0.3, 2.0, 4


def submit_experiment(
    config: DictConfig, overrides: Sequence[str], launcher: ClusterLauncher, node: Mapping[str, Any]
) -> None:
    """Submit an experiment, or with `dry_run` write what would be submitted.

    Args:
        config: checked.
        overrides: what was typed.
        launcher: where to.
        node: its config node, from which another process makes it again.

    Raises:
        UserError: when the cluster refuses it.
        Ended: with the job's exit code, when it was waited for and did not end well.
    """
    outputs = Path(config.outputs).resolve()
    record = RunRecord.create(outputs, config.name, Path(config.run_dir) if config.run_dir else None)
    if not (record.folder / FOLDER / HANDLE).exists():
        record.update(status="not submitted")
    with open_dict(config):
        config.run_dir = str(record.folder)
        dry, config.dry_run = config.dry_run, False
    try:
        launcher.require_fit(config)
        backend = launcher.backend(1, outputs)
        _require_idle(record.folder / FOLDER, backend)
        backend.check(config.name, record.folder / FOLDER)
    except UserError as error:
        if not (record.folder / FOLDER / HANDLE).exists():
            record.end("failed", str(error))
        raise
    job = Job.create(record.folder / FOLDER, config, overrides, _notes(config, launcher, node))
    print(f"cost    at most {launcher.cost(1)}")
    if dry:
        print(f"script  {backend.write([job], job.folder)}  (not submitted: dry_run)")
        return
    record.update(status="submitted")  # before: the record is the job's once there is one
    try:
        backend.submit(job)
    except UserError as error:
        record.end("failed", str(error))
        raise
    print(f"run     {record.folder}")
    print(f"job     {backend.states([job])[0]}; python -m framework jobs status {record.folder}", flush=True)
    if launcher.wait:
        raise_unless_well(follow(job, backend))


def _notes(config: DictConfig, launcher: ClusterLauncher, node: Mapping[str, Any]) -> dict[str, Any]:
    return {"title": config.name, "launcher": dict(node), "where": launcher.where()}


def _require_idle(folder: Path, backend: ClusterBackend) -> None:
    """Make sure that no earlier job works on a run."""
    if (folder / HANDLE).exists() and not is_over(Job(folder), backend):
        raise UserError(f"run_dir: a job works on `{folder.parent}`; `python -m framework jobs cancel` ends it")


def is_over(job: Job, backend: ClusterBackend) -> bool:
    """Return whether a job is over; one that is requeued may seem to be for a moment."""
    for _ in range(_LOOKS):
        if backend.phases([job]) == [Phase.gone]:
            return True
        backend.wait(1.0)
    return False


def follow(job: Job, backend: ClusterBackend) -> Result | None:
    """Show what a job prints until it is over; returns how it ended, None where nobody knows.

    Ctrl-C lets go of it, and it goes on.
    """
    try:
        for text in lines_of(job, backend):
            sys.stdout.write(text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"\nlet go: the job goes on; python -m framework jobs logs -f {job.folder.parent}", file=sys.stderr)
        raise Ended(EXIT_INTERRUPTED) from None
    return job.result()


def lines_of(job: Job, backend: ClusterBackend) -> Iterator[str]:
    """Yield what a job has printed, and prints, until it is over."""
    place, state, next_look = 0, "", 0.0
    while True:
        (phase,) = backend.phases([job])
        if phase is Phase.waiting and time.monotonic() >= next_look:
            next_look = time.monotonic() + _STATE_S
            if (now := backend.states([job])[0]) != state:
                state = now
                yield f"{state}\n"
        try:
            with (job.folder / LOG).open("rb") as file:
                file.seek(place)
                content = file.read()
        except OSError:
            content = b""
        if content:
            place += len(content)
            yield content.decode(errors="replace")
        if phase is Phase.gone:
            return
        backend.wait(_POLL_S)


def raise_unless_well(result: Result | None) -> None:
    """Raise `Ended` with a job's exit code, unless that is 0."""
    if result is None:
        print("error: the job ended without a word; its log and `jobs status` may say why", file=sys.stderr)
        raise Ended(EXIT_FAILED)
    if result.exit_code:
        raise Ended(result.exit_code)
