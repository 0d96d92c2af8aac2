"""The model as it was saved, run by PyTorch eagerly: what every export is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy.typing as npt

from .targets import Predict


@dataclass(frozen=True)
class Eager:
    """Runs a folder written by `framework.models.saved.save_model`; it writes nothing itself.

    Args:
        compiled: whether by `torch.compile`.
    """

    compiled: bool = False

    def load(self, folder: Path, threads: int) -> Predict:
        import torch

        from framework.models.saved import load_model

        torch.set_num_threads(threads)
        model = load_model(folder).model
        if self.compiled:
            model.compile(dynamic=True)

        @torch.inference_mode()
        def predict(arrays: Sequence[npt.NDArray]) -> npt.NDArray:
            return model(*(torch.from_numpy(a) for a in arrays)).float().numpy()

        return predict
