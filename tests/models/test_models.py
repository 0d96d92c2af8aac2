from pathlib import Path

import pytest
import torch
from torch import nn

from framework.compress.structured_pruning import prune_channels
from framework.errors import UserError
from framework.models.cnn import CNN
from framework.models.gpt import GPT
from framework.models.mlp import MLP
from framework.models.saved import Change, SavedModel, load_model, save_model
from framework.models.structure import apply_structure, describe_structure, structure_changes
from framework.models.vit import ViT

IMAGE = torch.randn(2, 1, 8, 8)
TOKENS = torch.randint(0, 32, (2, 16))
CASES = {
    "cnn": (lambda: CNN(1, 10, (8, 16)), IMAGE),
    "mlp": (lambda: MLP([1, 8, 8], 10, (16, 16)), IMAGE),
    "vit": (lambda: ViT(1, 8, 10, width=16, depth=2), IMAGE),
    "gpt": (lambda: GPT(32, 16, width=16, depth=2), TOKENS),
}


@pytest.mark.parametrize("name", CASES)
def test_pruning_shrinks_every_model_and_its_structure_comes_back_on_a_fresh_one(name: str) -> None:
    make, example = CASES[name]
    torch.manual_seed(0)
    model = make().eval()
    before, shape, size = describe_structure(model), model(example).shape, sum(p.numel() for p in model.parameters())
    cut = prune_channels(model, (example,), 0.5)
    assert cut
    assert sum(p.numel() for p in model.parameters()) < 0.8 * size
    assert model(example).shape == shape
    fresh = apply_structure(make(), structure_changes(before, describe_structure(model))).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(example), model(example))


def test_only_the_layers_named_are_pruned() -> None:
    model = CNN(1, 10, (8, 16))
    assert prune_channels(model.eval(), (IMAGE,), 0.5, ["body.0.*"]) == ["body.0.0"]


def test_the_gpt_sees_no_future() -> None:
    model = GPT(32, 16, width=16, depth=2).eval()
    changed = TOKENS.clone()
    changed[:, 10:] = 0
    assert torch.allclose(model(TOKENS)[:, :10], model(changed)[:, :10], atol=1e-6)
    assert not torch.allclose(model(TOKENS)[:, 10:], model(changed)[:, 10:], atol=1e-3)


def test_reading_on_with_a_cache_gives_what_reading_the_whole_window_gives() -> None:
    model = GPT(32, 16, width=16, depth=2).eval()
    keys = values = model.empty_cache(2)
    found = []
    for new in (TOKENS[:, :6], TOKENS[:, 6:7], TOKENS[:, 7:12], *TOKENS[:, 12:].split(1, dim=1)):
        logits, keys, values = model.decode(new, keys, values)
        found.append(logits)
    assert torch.allclose(torch.cat(found, dim=1), model(TOKENS), atol=1e-5)
    assert keys.shape == values.shape == model.empty_cache(2, 16).shape


def test_a_saved_model_comes_back_with_tied_weights_and_refuses_others(tmp_path: Path) -> None:
    node = {"_target_": "framework.models.gpt.GPT", "vocabulary": 32, "context": 16, "width": 16, "depth": 1}
    model = GPT(32, 16, width=16, depth=1).eval()
    save_model(SavedModel(model, node), tmp_path / "m", (TOKENS,))
    assert torch.equal(load_model(tmp_path / "m").model(TOKENS), model(TOKENS))
    save_model(SavedModel(GPT(32, 16, width=32, depth=1), node), tmp_path / "wrong", (TOKENS,))
    with pytest.raises(UserError, match="do not fit"):
        load_model(tmp_path / "wrong")


def test_a_pruned_model_is_loaded_by_redoing_its_structure(tmp_path: Path) -> None:
    node = {"_target_": "framework.models.cnn.CNN", "channels": 1, "outputs": 10, "widths": [8, 16]}
    pass_node = {"_target_": "framework.compress.structured_pruning.StructuredPruning"}
    model = CNN(1, 10, (8, 16)).eval()
    before = describe_structure(model)
    prune_channels(model, (IMAGE,), 0.5)
    state = {"structure": structure_changes(before, describe_structure(model))}
    save_model(SavedModel(model, node, [Change("pruning", pass_node, state)]), tmp_path / "m", (IMAGE,))
    loaded = load_model(tmp_path / "m").model
    assert torch.equal(loaded(IMAGE), model(IMAGE))
    assert isinstance(loaded, nn.Module)
