"""A compiled model trains to what it trains to uncompiled, and is saved under the same names."""

import pytest
import torch

from framework.runner import run
from tests.conftest import Compose
from tests.integration.conftest import need
from tests.training.test_trainer_options import weights

pytestmark = pytest.mark.integration


def test_a_compiled_transformer_trains_to_the_same_weights(small: Compose) -> None:
    need("g++")
    training = ("stages=[prepare,train]", "model=vit", "model.width=32", "model.depth=2", "model.dropout=0",
                "trainer.max_steps=6")  # fmt: skip
    plain, compiled = run(small(*training)), run(small(*training, "trainer.compile=true"))
    assert weights(plain).keys() == weights(compiled).keys()
    for name, tensor in weights(compiled).items():
        torch.testing.assert_close(weights(plain)[name], tensor, atol=1e-4, rtol=1e-3)
