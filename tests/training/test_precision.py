"""Number formats beyond Lightning's."""

import pytest
import torch

from framework.errors import UserError
from framework.models.cnn import CNN
from framework.models.vit import ViT
from framework.runner import run
from framework.training.float8 import Float8
from framework.training.flops import training_flops
from tests.conftest import Compose


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_layers_multiply_in_float8_while_a_model_is_trained(recipe: str) -> None:
    torch.manual_seed(0)
    model, x = ViT(1, 8, 16, width=16, depth=1, dropout=0.0), torch.randn(4, 1, 8, 8)
    plain, layers = model(x), [type(m) for m in model.modules()]
    with Float8(recipe=recipe, emulate=True).applied(model):  # type: ignore[arg-type]
        rough = model(x)
        rough.sum().backward()
    assert [type(m) for m in model.modules()] == layers
    assert 0 < (rough - plain).abs().max() < 0.1 * plain.abs().max()
    assert model.blocks[0].mlp_in.weight.grad is not None
    with pytest.raises(UserError, match="multiples of 16"), Float8(emulate=True).applied(CNN(1, 10, [4])):
        pass


def test_a_run_in_float8_says_so(small: Compose) -> None:
    layers = "+precision.layers={_target_: framework.training.float8.Float8, emulate: true}"
    record = run(small("stages=[prepare,train]", "model=vit", "precision=bf16", layers, "precision.name=fp8"))
    assert record["effective"]["precision"] == "bf16-mixed with fp8 layers"
    assert record.metrics["val/accuracy"] > 0.2


def test_the_arithmetic_of_a_step_is_counted_from_shapes() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.Linear(20, 5))
    forward = 2 * (10 * 20 + 20 * 5)
    assert training_flops(model, [torch.randn(3, 10)]) == 3 * forward
    model.requires_grad_(False)
    assert training_flops(model, [torch.randn(3, 10)]) == 2 * forward
    assert next(model.parameters()).device.type == "cpu"
