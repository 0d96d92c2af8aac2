"""Groups of parameters, and optimizers beyond PyTorch's own."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from framework.errors import UserError
from framework.models.cnn import CNN
from framework.models.gpt import GPT
from framework.runner import run
from framework.training.groups import parameter_groups, with_parameters
from framework.training.optimizers import Muon
from tests.conftest import Compose


def gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(vocabulary=16, context=8, width=8, depth=1, heads=2)


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        tokens = torch.randint(16, (4, 8), generator=torch.Generator().manual_seed(1))
        model(tokens).square().mean().backward()
        optimizer.step()


def test_norms_are_not_decayed_and_rules_come_first() -> None:
    rules = {"slow": {"parameters": ["blocks.0.attention.*"], "lr": 1e-5}, "all": {"parameters": ["*"], "eps": 1e-6}}
    groups = {group.names: dict(group.options) for group in parameter_groups(gpt(), rules)}
    assert groups[("blocks.0.attention.query_key_value.weight", "blocks.0.attention.out.weight")] == {"lr": 1e-5}
    assert groups[("embedding.weight",)] == {"eps": 1e-6, "hidden": False}
    assert groups[("blocks.0.norm_attention.weight", "blocks.0.norm_mlp.weight", "norm.weight")] == {
        "eps": 1e-6, "weight_decay": 0.0,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"parameter_groups\.none: no trained parameter is called so; there are embed"):
        parameter_groups(gpt(), {"none": {"parameters": ["absent"], "lr": 1.0}})


def test_a_rule_reaches_the_optimizer(small: Compose) -> None:
    run(small("stages=[prepare,train]", "trainer.max_steps=1",
              "+trainer.parameter_groups={head: {parameters: ['head.*'], lr: 0.0}}"))  # fmt: skip
    with pytest.raises(UserError, match="no trained parameter is called so"):
        run(small("stages=[prepare,train]", "+trainer.parameter_groups={h: {parameters: [hed], lr: 0.0}}"))


def test_muon_turns_hidden_matrices_orthogonal_and_leaves_the_rest_to_adamw() -> None:
    model, twin = gpt(), gpt()
    stepped(model, Muon(with_parameters(model, parameter_groups(model)), lr=1e-2, weight_decay=0.0), 1)
    adamw = torch.optim.AdamW(
        with_parameters(twin, parameter_groups(twin)), lr=1e-2, weight_decay=0.0, betas=(0.9, 0.95)
    )
    start = {name: p.detach().clone() for name, p in gpt().named_parameters()}
    stepped(twin, adamw, 1)
    for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        if name in ("embedding.weight", "norm.weight"):
            assert torch.equal(mine, theirs)
    update = (model.blocks[0].attention.out.weight - start["blocks.0.attention.out.weight"]).detach()  # type: ignore[union-attr]
    values = torch.linalg.svdvals(update)
    assert values.max() / values[: len(values) // 2].min() < 2  # of one size, as far as five iterations go


def test_muon_goes_on_from_a_state_by_name() -> None:
    model, twin = gpt(), gpt()
    whole = Muon(with_parameters(model, parameter_groups(model)))
    stepped(model, whole, 2)
    state = deepcopy(get_optimizer_state_dict(model, whole))
    twin.load_state_dict(model.state_dict())
    other = Muon(with_parameters(twin, parameter_groups(twin)))
    set_optimizer_state_dict(twin, other, state)
    stepped(model, whole, 2)
    stepped(twin, other, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_muon_says_when_there_is_nothing_for_it() -> None:
    class Vectors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(3)

    with pytest.raises(UserError, match="the model has none"):
        Muon(with_parameters(Vectors(), parameter_groups(Vectors())))
    assert Muon(with_parameters(CNN(1, 10, [4]), parameter_groups(CNN(1, 10, [4]))))
