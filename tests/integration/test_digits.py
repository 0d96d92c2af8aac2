import json
import shutil
from pathlib import Path

import pytest

from framework.record.run import RunRecord
from tests.conftest import Command
from tests.integration.conftest import Whole

pytestmark = pytest.mark.integration


def test_the_main_job_ends_with_verified_smaller_models_and_a_record_of_them(whole: Whole) -> None:
    record, m = whole.record, whole.record.metrics
    assert record["status"] == "completed"
    assert {name: s["status"] for name, s in record["stages"].items()} == dict.fromkeys(
        ("prepare", "train", "evaluate", "compress", "export", "report"), "completed"
    )
    assert m["test/accuracy"] >= 0.97
    assert m["compress/structured_pruning/parameters"] < 0.3 * m["model/parameters"]
    for target in ("onnx", "torch_export"):
        assert m[f"export/{target}/accuracy"] >= m["test/accuracy"] - 0.01
        assert m[f"export/{target}/agreement"] >= 0.999
    assert record["verified"]


def test_the_run_directory_holds_what_is_promised(whole: Whole) -> None:
    folder = whole.record.folder
    for name in (
        "config.yaml", "overrides.txt", "run.json", "log.txt", "metrics.csv", "report.html",
        "model/trained/weights.safetensors", "model/compressed/weights.safetensors",
        "export/onnx/model.onnx", "export/torch_export/model.pt2", "export/onnx/signature.json",
    ):  # fmt: skip
        assert (folder / name).is_file(), name
    manifest = json.loads((Path(whole.record["data"]["path"]) / "manifest.json").read_text())
    assert manifest["version"] == whole.record["data"]["version"]


def test_the_last_lines_are_a_table_and_the_paths(whole: Whole) -> None:
    lines = whole.terminal.strip().splitlines()
    assert lines[-2].startswith(f"run     {whole.record.folder}")
    assert lines[-1] == f"report  {whole.record.folder}/report.html"
    table = "\n".join(lines[-9:-2])
    for word in ("trained, eager", "structured_pruning", "onnx", "torch_export", "faster", "agree"):
        assert word in table


def test_the_onnx_file_runs_with_the_runtime_alone(whole: Whole) -> None:
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(whole.record.folder / "export/onnx/model.onnx")
    assert [i.name for i in session.get_inputs()] == ["image"]
    assert session.run(None, {"image": np.zeros((7, 1, 8, 8), np.float32)})[0].shape == (7, 10)


def test_stages_can_be_run_alone_on_an_earlier_run(whole: Whole, command: Command, outputs: Path) -> None:
    stages = "stages=[compress,export,report]"
    done = command(
        f"outputs={outputs}", f"from_run={whole.record.folder}", stages, "compress=static_int8", "export=onnx"
    )
    assert done.returncode == 0, done.stderr
    record = RunRecord(outputs / "latest")
    assert list(record["stages"]) == ["compress", "export", "report"]
    assert record["tables"]["compress"][1]["pass"] == "static_int8"
    assert record.metrics["test/accuracy"] == whole.record.metrics["test/accuracy"]
    assert record.metrics["export/onnx/accuracy"] >= record.metrics["test/accuracy"] - 0.02


def test_runs_are_listed_shown_compared_and_repeated_exactly(whole: Whole, command: Command, tmp_path: Path) -> None:
    outputs = f"--outputs={whole.outputs}"
    listed = command("runs", outputs, module=True)
    assert f"digits/{whole.record.folder.name}" in listed.stdout
    assert f"test/accuracy {whole.record.metrics['test/accuracy']:.4f}" in listed.stdout
    shown = command("runs", outputs, "show", whole.record["id"], module=True).stdout
    assert whole.record["data"]["version"] in shown
    assert "export/torch_export" in shown
    elsewhere = tmp_path / "again"
    shutil.copytree(whole.outputs / "datasets", elsewhere / "datasets")
    again = command("runs", f"--outputs={elsewhere}", "rerun", str(whole.record.folder), module=True)
    assert again.returncode == 0, again.stderr
    second = RunRecord(elsewhere / "latest")
    timed = ("latency", "speedup", "bytes", "rows_per_s")
    first = {k: v for k, v in whole.record.metrics.items() if not any(word in k for word in timed)}
    assert {k: v for k, v in second.metrics.items() if not any(word in k for word in timed)} == first
    compared = command("runs", outputs, "compare", str(whole.record.folder), str(second.folder), module=True).stdout
    assert "outputs" in compared
    assert "optimizer" not in compared
    assert "test/accuracy" in compared
