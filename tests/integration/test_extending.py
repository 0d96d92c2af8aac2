"""Five components in a package outside of the repository, used by one experiment with no edit in the framework."""

import json
from pathlib import Path

import pytest

from framework.record.run import RunRecord
from tests.conftest import Command

pytestmark = pytest.mark.integration

FILES = {
    "rings/__init__.py": "",
    "rings/data.py": '''
from dataclasses import dataclass
import numpy as np

@dataclass(frozen=True)
class Rings:
    """Points in the plane, labelled by the ring they lie on."""
    rows: int
    def partitions(self): return range(3)
    def read(self, partition):
        rng = np.random.default_rng(partition)
        label = rng.integers(0, 2, self.rows)
        angle = rng.uniform(0, 2 * np.pi, self.rows)
        radius = 1 + label + rng.normal(0, 0.1, self.rows)
        return {"x": np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1), "label": label.astype(np.int64)}
    def fingerprint(self): return f"rings {self.rows}"

@dataclass(frozen=True)
class Halve:
    field: str
    def __call__(self, rows): return {**rows, self.field: (rows[self.field] / 2).astype(np.float32)}
''',
    "rings/model.py": """
from torch import nn

class TwoLayers(nn.Module):
    def __init__(self, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 2))
    def forward(self, x): return self.layers(x)
""",
    "rings/rounding.py": '''
import torch
from framework.compress.passes import Compressed

class Rounding:
    """Round weights to multiples of a step."""
    def __init__(self, step: float): self.step = step
    def apply(self, model, bench, folder):
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_((weight / self.step).round() * self.step)
        return Compressed(model)
    def restore(self, model, state): return model
''',
    "rings/npz.py": '''
import numpy as np

class Npz:
    """The weights as arrays, run by NumPy alone."""
    def export(self, saved, example, inputs, folder):
        np.savez(folder / "weights.npz", **{k: v.numpy() for k, v in saved.model.state_dict().items()})
    def load(self, folder, threads):
        w = np.load(folder / "weights.npz")
        first, second = ((w[f"layers.{i}.weight"].T, w[f"layers.{i}.bias"]) for i in (0, 2))
        return lambda arrays: np.maximum(arrays[0] @ first[0] + first[1], 0) @ second[0] + second[1]
''',
    "conf/data/rings.yaml": """
# two rings in the plane
name: rings
kind: vector
fields:
  x: {shape: [2], dtype: float32}
  label: {shape: [], dtype: int64}
labels: [inner, outer]
source: {_target_: rings.data.Rings, rows: 400}
transforms:
  halve: {_target_: rings.data.Halve, field: x}
""",
    "conf/model/two_layers.yaml": "# two layers\n_target_: rings.model.TwoLayers\nhidden: 16\n",
    "conf/compress/rounding.yaml": "# @package compress.rounding\n# rounds\n_target_: rings.rounding.Rounding\nstep: 0.01\n",
    "conf/export/npz.yaml": "# @package export.npz\n# arrays\n_target_: rings.npz.Npz\n",
    "recipes/rings/recipe.yaml": """
# @package _global_
# rings, told apart
defaults:
  - override /data: rings
  - override /model: two_layers
  - override /compress: [rounding]
  - override /export: [npz]
name: rings
task: {inputs: [x]}
trainer: {max_epochs: 30}
""",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        file = tmp_path / "mine" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return tmp_path / "mine"


def environment(package: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(package)}


def test_an_experiment_made_of_outside_parts_runs_from_its_own_folder(package: Path, command: Command) -> None:
    options = {"cwd": package, "env": environment(package)}
    done = command("--config-dir", "conf", "recipe=rings", **options)
    assert done.returncode == 0, done.stdout + done.stderr
    record = RunRecord(package / "outputs" / "latest")
    assert record["name"] == "rings"
    assert record.metrics["test/accuracy"] > 0.9
    assert record.metrics["export/npz/agreement"] == 1.0
    assert record["tables"]["compress"][1]["pass"] == "rounding"
    assert json.loads((record.folder / "export/npz/signature.json").read_text())["output"]["labels"] == [
        "inner",
        "outer",
    ]


def test_the_check_reads_outside_parts_like_its_own(package: Path, command: Command) -> None:
    options = {"cwd": package, "env": environment(package), "module": True}
    good = command("check", "--config-dir", "conf", "recipe=rings", **options)
    assert good.returncode == 0, good.stderr
    bad = command("check", "--config-dir", "conf", "recipe=rings", "+model.hiden=3", "data.source.rows=many", **options)
    assert bad.returncode == 2
    assert "Did you mean `hidden`?" in bad.stderr
    assert "`rows` takes `int`" in bad.stderr
    assert "rings" in command("--config-dir", "conf", "--help", **{**options, "module": False}).stdout
