"""LoRA: small additions are trained, and merged at the end."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from framework.errors import UserError
from framework.models.vit import ViT
from framework.record.run import RunRecord
from framework.runner import run
from framework.training.low_rank import add_low_rank, merge_low_rank
from tests.conftest import Compose

TRAINING = ("model=vit", "model.width=32", "model.depth=2", "stages=[prepare,train]", "trainer.threads=1")


def weights(record: RunRecord) -> dict[str, torch.Tensor]:
    return load_file(record.folder / "model" / "trained" / "weights.safetensors")


def test_additions_are_nothing_at_first_and_merged_they_compute_the_same() -> None:
    torch.manual_seed(0)
    model = ViT(1, 8, 10, width=16, depth=1).eval()
    names, x = list(model.state_dict()), torch.randn(3, 1, 8, 8)
    plain = model(x)
    add_low_rank(model, rank=2, layers=["blocks.*.attention.*"])
    assert torch.equal(model(x), plain)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained and all("attention" in n and ".lora_" in n for n in trained)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_()
    changed = model(x)
    assert not torch.allclose(changed, plain)
    merge_low_rank(model)
    assert list(model.state_dict()) == names
    assert torch.allclose(model(x), changed, atol=1e-5)
    assert {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {nn.Linear}
    with pytest.raises(UserError, match=r"trainer.lora.layers: no linear layer is called so; there are blocks"):
        add_low_rank(model, rank=2, layers=["absent"])


def test_a_fine_tuned_model_differs_from_its_start_by_matrices_of_low_rank(small: Compose) -> None:
    first = run(small(*TRAINING))
    options = ("trainer.lora.rank=2", f"trainer.start_from={first.folder}", "trainer.lora.whole=[head.*]")
    record = run(small(*TRAINING, *options))
    assert record.metrics["val/accuracy"] >= first.metrics["val/accuracy"]
    assert record.metrics["model/parameters"] == first.metrics["model/parameters"]
    a, b = weights(first), weights(record)
    assert a.keys() == b.keys()
    assert torch.equal(a["positions"], b["positions"])
    assert not torch.equal(a["head.bias"], b["head.bias"])
    rank = torch.linalg.matrix_rank(b["blocks.0.mlp_in.weight"] - a["blocks.0.mlp_in.weight"], rtol=1e-3)
    assert rank == 2
    assert "lora:" in (record.folder / "log.txt").read_text()


def test_it_goes_on_to_the_same_bits(small: Compose, tmp_path: Path) -> None:
    first = run(small(*TRAINING))
    options = (*TRAINING, "trainer.lora.rank=2", f"trainer.start_from={first.folder}")
    undisturbed = run(small(*options))
    half = run(small(*options, f"run_dir={tmp_path}/half"))
    for folder in sorted((half.folder / "checkpoints").glob("step_*"))[1:]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    state = (half.folder / "run.json").read_text().replace('"completed"', '"preempted"')
    (half.folder / "run.json").write_text(state)
    again = weights(run(small(*options, f"run_dir={tmp_path}/half")))
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights(undisturbed).items())
