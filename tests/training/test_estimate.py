import pytest

from framework.errors import UserError
from framework.training.estimate import describe_shapes, estimate
from tests.conftest import Compose


def test_memory_of_adamw_is_two_numbers_a_weight_and_nothing_of_the_size_is_allocated(small: Compose) -> None:
    e = estimate(small("recipe=stdlib_gpt", "model=gpt_124m"))
    assert e.parameters == 123_587_328
    assert e.weights == e.gradients == 4 * e.parameters
    assert e.optimizer == 2 * e.weights
    assert e.inputs == {"tokens": (8, 1024)}
    assert e.outputs == (8, 1024, 50304)


def test_half_the_bytes_in_bf16_true_and_activations_grow_with_the_batch(small: Compose) -> None:
    full, half = estimate(small("model=vit")), estimate(small("model=vit", "precision=bf16_true"))
    assert half.weights * 2 == full.weights
    double = estimate(small("model=vit", "trainer.global_batch_size=128"))
    assert 1.9 < double.activations / full.activations < 2.1


def test_a_model_that_does_not_fit_the_data_is_said_before_training(small: Compose) -> None:
    with pytest.raises(UserError, match="does not go through CNN"):
        estimate(small("model.channels=3"))
    with pytest.raises(UserError, match="not a multiple of patch"):
        estimate(small("model=vit", "model.patch=3"))
    assert "memory of one process" in describe_shapes(small())
