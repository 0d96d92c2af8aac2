"""A network that takes its time, so that a training can be disturbed in the middle of it without keeping a core busy."""

import time
from typing import Any

import torch

from framework.models.cnn import CNN


class PatientCNN(CNN):
    """A CNN that waits in every step of a training; what it computes is the same.

    Args:
        pause_s: so long.
        **others: see `CNN`.
    """

    def __init__(self, pause_s: float = 0.0, **others: Any) -> None:
        super().__init__(**others)
        self.pause_s = pause_s

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of images."""
        if self.training:
            time.sleep(self.pause_s)
        return super().forward(image)
