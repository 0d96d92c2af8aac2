"""A multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU and dropout between them.

    Args:
        shape: shape of one input row; it is flattened.
        outputs: size of the output.
        hidden: sizes of the hidden layers.
        dropout: probability of dropping a hidden unit while training.
    """

    def __init__(self, shape: Sequence[int], outputs: int, hidden: Sequence[int] = (128, 128), dropout: float = 0.0):
        super().__init__()
        sizes = [prod(shape), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(sizes[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:  # [batch, *shape] -> [batch, outputs]
        return self.head(self.body(x))
