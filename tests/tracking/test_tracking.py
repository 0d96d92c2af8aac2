from pathlib import Path

import pytest

from framework.record.console import aligned, bytes_text, duration_text
from framework.record.run import RunRecord
from framework.record.summary import model_rows, text_table
from framework.tracking.csv import CsvTracker, read_curves


def test_curves_survive_a_resume_and_a_torn_last_line(outputs: Path) -> None:
    record = RunRecord.create(outputs, "x")
    for values in ([(1, 3.0), (2, 2.0)], [(2, 2.0), (3, 1.0)]):
        tracker = CsvTracker()
        tracker.start(record, {})
        for step, value in values:
            tracker.log({"loss": value}, step)
        tracker.finish(record)
    with (record.folder / "metrics.csv").open("a") as file:
        file.write("4,lo")
    assert read_curves(record.folder / "metrics.csv") == {"loss": [(1, 3.0), (2, 2.0), (3, 1.0)]}


def test_the_summary_has_a_row_for_each_model_and_leaves_out_what_is_not_known(outputs: Path) -> None:
    record = RunRecord.create(outputs, "x")
    assert text_table(record) == ""
    record.update(main_metric="accuracy")
    record.add_metrics({"model/parameters": 1000, "test/accuracy": 0.9, "eager/latency_ms_b1": 1.0})
    record.add_metrics({"export/onnx/accuracy": 0.89, "export/onnx/latency_ms_b1": 0.1, "export/onnx/speedup_b1": 10.0})
    (record.folder / "export").mkdir()
    record.add_artifact("export/onnx", record.folder / "export", "export")
    assert [r["model"] for r in model_rows(record)] == ["trained, eager", "onnx"]
    header, _, first, second = text_table(record).splitlines()
    assert header.split() == ["model", "params", "test", "accuracy", "ms", "b1", "faster"]
    assert first.split()[-3:] == ["1,000", "0.9000", "1.000"]
    assert second.split() == ["onnx", "0.8900", "0.100", "10.0x"]


def test_tables_are_aligned() -> None:
    assert aligned([["a", "bb"], ["ccc", "d"]]).splitlines() == ["a    bb", "───  ──", "ccc   d"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.42, "0.4 s"), (75, "75 s"), (190, "3 min 10 s"), (7500, "2 h 5 min"), (400_000, "4 d")]
)
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_sizes_are_said_in_decimal_units() -> None:
    assert [bytes_text(n) for n in (812, 14_200, 3_100_000, 2e9)] == ["812 B", "14.2 kB", "3.1 MB", "2.0 GB"]
