"""Jobs on this machine, in real processes."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.config.components import build
from framework.errors import Preempted, UserError
from framework.launch.backend import Phase
from framework.launch.jobs import Job, Status
from framework.launch.local import LocalBackend
from framework.record.run import RunRecord
from tests.conftest import Compose

LONG = ("stages=[prepare,train]", "trainer.max_epochs=100000", "trainer.validate_every_n_steps=5", "trainer.threads=1")


@pytest.fixture
def backend() -> Iterator[LocalBackend]:
    made = LocalBackend(slots=2)
    yield made
    made.close()


@pytest.fixture
def make(small: Compose, tmp_path: Path) -> Iterator[object]:
    made: list[Job] = []

    def job(*overrides: str) -> Job:
        folder = tmp_path / f"job{len(made)}"
        made.append(Job.create(folder, small(*overrides, f"run_dir={folder}/run"), overrides, {"number": len(made)}))
        return made[-1]

    yield job
    for left in made:
        LocalBackend().kill(left)


def until_gone(backend: LocalBackend, job: Job, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while backend.phases([job]) != [Phase.gone]:
        assert time.monotonic() < end, job.last_lines()
        backend.wait(0.1)


def until_reported(job: Job, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not job.reports()[0]:
        assert time.monotonic() < end, job.last_lines()
        time.sleep(0.05)


def test_a_job_leaves_its_result_its_reports_and_its_log(backend: LocalBackend, make) -> None:  # type: ignore[no-untyped-def]
    good, bad = make("stages=[prepare,train]"), make("stages=[prepare]", "data.source.loader=load_digit")
    for job in (good, bad):
        backend.submit(job)
    with pytest.raises(RuntimeError, match="all 2 slots are taken"):
        backend.submit(good)
    for job in (good, bad):
        until_gone(backend, job)
    result = good.result()
    assert result is not None
    assert result.status is Status.completed
    assert result.metrics["val/accuracy"] == RunRecord(Path(result.run or "")).metrics["val/accuracy"]
    reports, end = good.reports()
    assert [step for step, _ in reports] == [19, 38]
    assert good.reports(end) == ([], end)
    mistaken = bad.result()
    assert mistaken is not None
    assert (mistaken.status, mistaken.exit_code) == (Status.mistaken, 2)
    assert "Did you mean `load_digits`" in bad.last_lines()


def test_a_job_that_is_asked_to_stop_says_as_what_and_goes_on_when_it_begins_again(
    backend: LocalBackend, make  # type: ignore[no-untyped-def]
) -> None:  # fmt: skip
    job = make(*LONG)
    backend.submit(job)
    until_reported(job)
    job.ask_to_stop(Status.pruned, "worse than others")
    LocalBackend().stop(job)  # any process that sees the folder may
    until_gone(backend, job)
    result = job.result()
    assert result is not None
    assert (result.status, result.error) == (Status.pruned, "worse than others")
    assert RunRecord(job.folder / "run")["status"] == "pruned"
    job.begin_again()
    assert job.result() is None
    job.write_result(result)  # a late word of the attempt before
    assert job.result() is None
    before = len(job.reports()[0])
    backend.submit(job)
    end = time.monotonic() + 60
    while len(job.reports()[0]) == before:
        assert time.monotonic() < end
        time.sleep(0.05)
    steps = [step for step, _ in job.reports()[0]]
    assert steps == sorted(set(steps))  # it went on where it was


def test_a_job_that_is_killed_is_gone_without_a_result_and_is_found_by_its_lock(
    backend: LocalBackend, make  # type: ignore[no-untyped-def]
) -> None:  # fmt: skip
    job = make(*LONG)
    backend.submit(job)
    until_reported(job)
    other = LocalBackend()
    assert other.phases([job]) == [Phase.running]
    with pytest.raises(UserError, match="another process runs the job"), job.lock():
        pass
    other.kill(job)
    until_gone(backend, job, 10)
    assert job.result() is None
    assert backend.why_gone(job) == "killed by SIGKILL"
    assert other.phases([job]) == [Phase.gone]


class Interrupted:
    """A component whose construction a signal meets."""

    def __init__(self) -> None:
        raise Preempted("stopped by SIGTERM")


def test_a_signal_that_comes_while_something_is_built_is_a_stop_and_no_failure() -> None:
    with pytest.raises(Preempted, match="stopped by SIGTERM"):
        build({"_target_": "tests.launch.test_local.Interrupted"}, "model")
