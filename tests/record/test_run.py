import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from framework.errors import UserError
from framework.record.catalogue import config_differences, find_runs, open_run, status_of
from framework.record.files import checksum, folder_aside, write_atomic
from framework.record.run import RunRecord


def test_a_new_run_is_what_latest_points_at(outputs: Path) -> None:
    RunRecord.create(outputs, "first")
    second = RunRecord.create(outputs, "second")
    assert (outputs / "latest").resolve() == second.folder


def test_an_artifact_that_changed_on_disk_is_refused(outputs: Path) -> None:
    record = RunRecord.create(outputs, "x")
    (record.folder / "model").mkdir()
    (record.folder / "model" / "a").write_bytes(b"weights")
    record.add_artifact("model", record.folder / "model", "model")
    assert record.artifact_path("model") == record.folder / "model"
    (record.folder / "model" / "a").write_bytes(b"weighty")
    with pytest.raises(UserError, match="damaged"):
        record.artifact_path("model")


def test_a_stage_that_raises_is_recorded_as_failed(outputs: Path) -> None:
    record = RunRecord.create(outputs, "x")
    with pytest.raises(ZeroDivisionError), record.stage("train"):
        1 / 0  # noqa: B018
    assert RunRecord(record.folder)["stages"]["train"]["status"] == "failed"


def test_two_processes_cannot_work_in_one_run_directory(outputs: Path) -> None:
    record = RunRecord.create(outputs, "x")
    with record.lock(), pytest.raises(UserError, match="another process"), RunRecord(record.folder).lock():
        pass


def test_a_run_whose_process_is_gone_is_lost_not_running(outputs: Path) -> None:
    record = RunRecord.create(outputs, "x")
    record.begin()
    assert status_of(record) == "running"
    record.update(pid=2**22 + 1)
    assert status_of(record) == "lost"


def test_a_damaged_record_hides_no_other_runs(outputs: Path) -> None:
    good, bad = RunRecord.create(outputs, "good"), RunRecord.create(outputs, "bad")
    (bad.folder / "run.json").write_text('{"name": "ba')
    assert [r.folder for r in find_runs(outputs)] == [good.folder]


def test_runs_are_opened_by_path_name_and_id_and_near_misses_are_named(outputs: Path) -> None:
    record = RunRecord.create(outputs, "x")
    for text in (str(record.folder), record.folder.name, record["id"], f"x/{record.folder.name}", "latest"):
        assert open_run(text, outputs).folder == record.folder
    with pytest.raises(UserError, match="Did you mean"):
        open_run(record.folder.name[:-1] + "?", outputs)


def test_differences_of_configs_are_listed_by_dotted_key() -> None:
    a, b = {"x": {"y": 1, "z": [1, 2]}, "only_a": 1}, {"x": {"y": 2, "z": [1, 2]}}
    assert config_differences(OmegaConf.create(a), OmegaConf.create(b)) == {"x.y": (1, 2), "only_a": (1, "-")}


def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.json"
    write_atomic(file, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "model"
    with pytest.raises(RuntimeError), folder_aside(final) as aside:
        (aside / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with folder_aside(final) as aside:
        (aside / "whole").write_text("x")
    assert json.dumps(sorted(p.name for p in final.iterdir())) == '["whole"]'


def test_a_folders_checksum_knows_names_as_well_as_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    before = checksum(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert checksum(tmp_path) != before
