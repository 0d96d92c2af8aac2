"""A plain convolutional network for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def conv_block(inputs: int, outputs: int) -> nn.Sequential:
    """Return 3x3 convolution, batch normalisation, ReLU; the size of the image stays."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class CNN(nn.Module):
    """Stages of two convolutions, each stage but the last followed by 2x2 max pooling; then a global mean.

    Args:
        channels: channels of the input.
        outputs: size of the output.
        widths: channels of each stage.
        dropout: probability of dropping a feature before the last layer while training.
    """

    def __init__(self, channels: int, outputs: int, widths: Sequence[int] = (32, 64, 128), dropout: float = 0.1):
        super().__init__()
        stages: list[nn.Module] = []
        previous = channels
        for i, width in enumerate(widths):
            stages += [conv_block(previous, width), conv_block(width, width)]
            if i < len(widths) - 1:
                stages.append(nn.MaxPool2d(2))
            previous = width
        self.body = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(previous, outputs)

    def forward(self, x: Tensor) -> Tensor:  # [batch, channels, height, width] -> [batch, outputs]
        features = self.pool(self.body(x)).flatten(1)  # [batch, widths[-1]]
        return self.head(self.dropout(features))
