import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from framework.errors import UserError
from framework.export.package import verify_package, write_checksums
from framework.export.process import RuntimeProcess
from framework.export.torch_export import TorchExport
from framework.export.verification import FLOAT32, INT8, Comparison
from framework.models.cnn import CNN
from framework.models.saved import SavedModel
from framework.record.run import RunRecord
from framework.runner import run
from tests.conftest import Compose


@dataclass(frozen=True)
class Altered(TorchExport):
    """Exports another model than the one it is given: what verification is there to find."""

    amount: float = 0.5

    def export(self, saved: SavedModel, example: Sequence[Tensor], inputs: Sequence[str], folder: Path) -> None:
        bias: Tensor = saved.model.get_parameter("head.bias")
        with torch.no_grad():
            bias[3] += self.amount
            super().export(saved, example, inputs, folder)
            bias[3] -= self.amount


class Dying:
    """A runtime that takes its process with it."""

    def load(self, folder: Path, threads: int) -> None:
        print("out of luck", file=sys.stderr, flush=True)
        os._exit(7)


class DyingLater(TorchExport):
    """A runtime that works, and then takes its process with it."""

    def load(self, folder: Path, threads: int) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
        predict, calls = super().load(folder, threads), iter(range(2))

        def dies(arrays: Sequence[np.ndarray]) -> np.ndarray:
            return predict(arrays) if next(calls, None) is not None else os._exit(7)

        return dies


@pytest.fixture
def trained(small: Compose) -> RunRecord:
    return run(small("stages=[prepare,train,evaluate]"))


@pytest.mark.integration
def test_every_export_is_verified_and_timed_in_its_own_process(small: Compose, trained: RunRecord) -> None:
    record = run(small("stages=[export]", f"from_run={trained.folder}", "export=[onnx,torch_export]"))
    m = record.metrics
    assert record["verified"]
    for target in ("onnx", "torch_export"):
        assert m[f"export/{target}/accuracy"] == pytest.approx(trained.metrics["test/accuracy"], abs=0.006)
        assert m[f"export/{target}/agreement"] >= 0.999
        assert m[f"export/{target}/max_difference"] < 1e-3
        assert m[f"export/{target}/latency_ms_b1"] > 0
        assert m[f"export/{target}/speedup_b32"] > 0
        signature = json.loads((record.folder / "export" / target / "signature.json").read_text())
        assert signature["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]
        assert signature["provenance"]["version"] == trained["data"]["version"]
        assert signature["preprocessing"]["normalise"]["mean"] == [4.9]
    assert m["test/accuracy"] == trained.metrics["test/accuracy"]  # taken over from the run that is continued


@pytest.mark.integration
def test_an_export_that_is_another_model_fails_and_says_by_how_much(small: Compose, trained: RunRecord) -> None:
    target = "tests.export.test_export.Altered"
    options = ["stages=[export]", f"from_run={trained.folder}", f"+export.altered._target_={target}"]
    with pytest.raises(UserError, match=r"export\.altered: it is not the model it was made from: .* 1e|0\.5"):
        run(small(*options))
    assert run(small(*options, "measure.on_mismatch=warn"))["verified"] is False


class Refusing(TorchExport):
    """A target that meets an operator it does not have."""

    def export(self, saved: SavedModel, example: Sequence[Tensor], inputs: Sequence[str], folder: Path) -> None:
        raise UserError("no kernel for aten::pink")


@pytest.mark.integration
def test_targets_that_fail_leave_the_others_as_they_are(small: Compose, trained: RunRecord) -> None:
    here = "tests.export.test_export"
    options = ["stages=[export]", f"from_run={trained.folder}", "export=[torch_export]", "measure.compiled=true"]
    bad = [f"+export.refusing._target_={here}.Refusing", f"+export.altered._target_={here}.Altered"]
    config = small(*options, *bad, f"+export.dying._target_={here}.DyingLater", f"run_dir={trained.folder}-export")
    with pytest.raises(UserError) as caught:
        run(config)
    said = str(caught.value)
    assert "export.refusing: no kernel for aten::pink" in said
    assert "export.altered: it is not the model it was made from" in said
    assert "export.dying: its runtime ended with code 7" in said
    record = RunRecord(Path(f"{trained.folder}-export"))
    assert [name for name in record.artifacts if name.startswith("export/")] == ["export/torch_export"]
    m = record.metrics
    assert m["export/torch_export/latency_p99_ms_b1"] >= m["export/torch_export/latency_p90_ms_b1"] > 0
    assert m["export/torch_export/rows_per_s_b32"] > 0
    assert m["compiled/speedup_b1"] > 0
    assert 50e6 < m["eager/peak_memory_bytes"] < 2e9
    assert verify_package(record.folder / "export" / "torch_export")


def test_a_runtime_that_cannot_load_the_model_says_why(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    node = {"_target_": "framework.export.onnx.Onnx"}
    with RuntimeProcess("onnx", node, tmp_path, 1) as process, pytest.raises(UserError, match=r"export\.onnx"):
        process.run([np.zeros((1, 1), np.float32)])


def test_a_runtime_that_dies_is_told_with_its_last_words(tmp_path: Path) -> None:
    node = {"_target_": "tests.export.test_export.Dying"}
    with RuntimeProcess("x", node, tmp_path, 1) as process, pytest.raises(UserError, match=r"code 7:\nout of luck"):
        process.run([np.zeros((1, 1), np.float32)])


def test_any_batch_size_goes_through_an_export(tmp_path: Path) -> None:
    model = CNN(1, 10, (4,)).eval()
    TorchExport().export(SavedModel(model, {}), (torch.zeros(2, 1, 8, 8),), ["image"], tmp_path)
    with RuntimeProcess("x", {"_target_": "framework.export.torch_export.TorchExport"}, tmp_path, 1) as process:
        for rows in (1, 2, 33):
            x = np.random.default_rng(0).normal(size=(rows, 1, 8, 8)).astype(np.float32)
            with torch.no_grad():
                expected = model(torch.from_numpy(x)).numpy()
            np.testing.assert_allclose(process.run([x]), expected, atol=1e-5)
        assert len(process.time([x], 0.01)) >= 5


@pytest.mark.parametrize(
    ("relative", "agreement", "largest", "complaint"),
    [
        (1e-5, 1.0, 1e-5, None),
        (0.01, 1.0, 0.1, "differ by up to 0.1"),
        (1e-5, 0.9, 1e-5, "agree on 90.00%"),
        (float("nan"), 1.0, float("nan"), "not finite"),
    ],
)
def test_tolerances_say_what_is_outside_them(relative: float, agreement: float, largest: float, complaint: str) -> None:
    found = Comparison({}, largest, largest, relative, agreement, 10).complaint(FLOAT32)
    assert (found is None) if complaint is None else complaint in str(found)
    assert INT8.difference > FLOAT32.difference


@pytest.mark.integration
def test_every_runtime_gives_the_models_outputs_and_its_package_checks_itself(
    small: Compose, trained: RunRecord
) -> None:
    targets = ["onnx", "torch_export", "openvino", "aot_inductor", "executorch"]
    record = run(small("stages=[export]", f"from_run={trained.folder}", f"export=[{','.join(targets)}]"))
    assert record["verified"]
    for target in targets:
        folder = record.folder / "export" / target
        assert record.metrics[f"export/{target}/agreement"] == 1.0
        said = verify_package(folder)
        assert said[0].startswith("12 prepared examples: largest difference")
        assert said[1].startswith("12 raw examples: largest difference")
        card = (folder / "model_card.md").read_text()
        assert trained["data"]["version"] in card
        assert f"| this file, in its runtime | {record.metrics[f'export/{target}/accuracy']:.4f} |" in card
        assert "framework" not in (folder / "predict.py").read_text()
    folder = record.folder / "export" / "onnx"
    done = subprocess.run(["sha256sum", "-c", "checksums.txt"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    engine = subprocess.run(["sh", "-n", "tensorrt.sh"], cwd=folder, capture_output=True, text=True)
    assert engine.returncode == 0, engine.stderr
    assert "--minShapes=image:1x1x8x8 --optShapes=image:32x1x8x8" in (folder / "tensorrt.sh").read_text()
    np.save(folder.parent / "rows.npy", np.load(folder / "examples.npz")["raw_image"][:3])
    shown = subprocess.run([sys.executable, "predict.py", "../rows.npy"], cwd=folder, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "['" in shown.stdout
    served(folder, shown.stdout)
    model = bytearray((folder / "model.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (folder / "model.onnx").write_bytes(model)
    with pytest.raises(UserError, match=r"is not as it was packed: model\.onnx was altered"):
        verify_package(folder)
    write_checksums(folder)  # somebody has put another model in its place, checksums and all
    write_bias(folder / "model.onnx", bytes(model))
    write_checksums(folder)
    with pytest.raises(UserError, match=r"predict\.py` failed"):
        verify_package(folder)
    (folder / "examples.npz").unlink()
    with pytest.raises(UserError, match=r"examples\.npz is missing"):
        verify_package(folder)


def served(folder: Path, expected: str) -> None:
    """Start the package's server, and make sure that it gives the labels that `predict.py` printed."""
    rows = np.load(folder.parent / "rows.npy")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-B", "serve.py", "--port", str(port)], cwd=folder, start_new_session=True
    )
    try:
        body = json.dumps({"image": rows.tolist()}).encode()
        request = Request(f"http://127.0.0.1:{port}/predict", body, {"Content-Type": "application/json"})
        for _ in range(240):
            time.sleep(0.25)
            try:
                answer = json.load(urlopen(request, timeout=10))
                break
            except URLError:
                assert server.poll() is None
        assert str(answer["labels"]) in expected
        assert np.asarray(answer["outputs"]).shape == (3, 10)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def write_bias(file: Path, content: bytes) -> None:
    """Spoil a model's weights."""
    import onnx

    model = onnx.load_from_string(content)
    largest = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    largest.raw_data = bytes(len(largest.raw_data))
    onnx.save(model, file)


class Branching(nn.Module):
    """Decides by a value: what cannot be captured."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x.flatten(1)[:, :10]
        return -x.flatten(1)[:, :10]


def test_a_model_that_cannot_be_captured_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be captured as a graph, by `if x.sum\(\) > 0:` \(.*test_export\.py"):
        TorchExport().export(SavedModel(Branching(), {}), (torch.zeros(2, 1, 8, 8),), ["image"], tmp_path)
