import html
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from framework.export.onnx import Onnx
from framework.export.package import verify_package
from framework.export.torch_export import TorchExport
from framework.models.saved import load_model
from framework.record.run import RunRecord
from tests.conftest import Command

pytestmark = pytest.mark.integration


def test_the_language_recipe_runs_whole_at_small_size(command: Command, outputs: Path) -> None:
    sizes = ["model.width=32", "model.depth=2", "model.context=64", "trainer.max_steps=60", "data.source.max_files=60"]
    split = "data.split.fractions={train: 0.8, val: 0.1, test: 0.1}"
    targets = ["export=[onnx,onnx_generation,torch_export,safetensors,triton]", "export.onnx.any_length=true"]
    targets += ["export.torch_export.any_length=true"]
    done = command("recipe=stdlib_gpt", split, *sizes, *targets, "measure.seconds=0.05", f"outputs={outputs}")
    assert done.returncode == 0, done.stdout + done.stderr
    record = RunRecord(outputs / "latest")
    m = record.metrics
    assert m["test/bits_per_byte"] < 6  # 8 for a model that knows nothing
    assert m["export/onnx/bits_per_byte"] == pytest.approx(m["compressed/bits_per_byte"], abs=1e-3)
    assert m["compress/structured_pruning/parameters"] < m["model/parameters"]
    sample = json.loads((record.folder / "evaluation/text_sample.json").read_text())["text"]
    assert sample in html.unescape((record.folder / "report.html").read_text())
    for target in ("onnx", "onnx_generation", "torch_export", "safetensors"):
        assert m[f"export/{target}/agreement"] >= 0.999
    writes_text(record.folder / "export" / "onnx_generation")
    takes_any_length(record.folder)
    repository = record.folder / "export" / "triton" / "stdlib_gpt"
    config = (repository / "config.pbtxt").read_text()
    assert 'input [ { name: "tokens" data_type: TYPE_INT64 dims: [ -1 ] } ]' in config
    assert 'output [ { name: "output" data_type: TYPE_FP32 dims: [ -1, 256 ] } ]' in config
    assert (repository / "1" / "model.onnx").read_bytes() == (record.folder / "export/onnx/model.onnx").read_bytes()


def writes_text(package: Path) -> None:
    """The exported model writes, with its cache, the text that the model itself writes."""
    assert verify_package(package)
    prompt = "def main(self):\n    return "
    ask = [sys.executable, "generate.py", prompt, "--temperature", "0"]
    done = subprocess.run([*ask, "--tokens", "30"], cwd=package, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model = load_model(package.parent.parent / "model" / "compressed").model
    tokens = torch.tensor([list(prompt.encode())])
    for _ in range(30):
        with torch.no_grad():
            tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), dim=1)
    assert done.stdout == bytes(t for t in tokens[0].tolist() if 0 < t < 256).decode(errors="replace") + "\n"
    longer = subprocess.run([*ask, "--tokens", "100"], cwd=package, capture_output=True, text=True)  # over the context
    assert longer.returncode == 0, longer.stderr
    assert longer.stdout.startswith(done.stdout.rstrip("\n"))


def takes_any_length(run: Path) -> None:
    model = load_model(run / "model" / "compressed").model
    for target in (Onnx(any_length=True), TorchExport(any_length=True)):
        predict = target.load(run / "export" / ("onnx" if isinstance(target, Onnx) else "torch_export"), threads=1)
        for length in (1, 2, 17, 64):
            tokens = np.random.default_rng(0).integers(0, 256, (3, length))
            with torch.no_grad():
                expected = model(torch.from_numpy(tokens)).numpy()
            np.testing.assert_allclose(predict([tokens]), expected, atol=1e-4)
