"""torch.export: the captured graph as a `.pt2` file, run by PyTorch without the model's code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy.typing as npt

from .targets import Predict

if TYPE_CHECKING:
    from torch import Tensor

    from framework.models.saved import SavedModel

MODEL = "model.pt2"


@dataclass(frozen=True)
class TorchExport:
    """Writes `model.pt2`, batch axis dynamic.

    `torch.export.load` reads it with PyTorch alone; a quantised model wants `torch.ao.quantization.fx._decomposed`
    imported before.

    Args:
        any_length: whether sequences of tokens may be of any length up to that of the training data.
    """

    any_length: bool = False

    loader_source: ClassVar[str] = """
def load(folder, threads):
    import torch
    import torch.ao.quantization.fx._decomposed  # operators of quantised graphs

    torch.set_num_threads(threads)
    model = torch.export.load(folder / "model.pt2").module()

    def predict(arrays):
        with torch.inference_mode():
            return model(*(torch.from_numpy(a) for a in arrays)).float().numpy()

    return predict
"""

    def export(self, saved: SavedModel, example: Sequence[Tensor], inputs: Sequence[str], folder: Path) -> None:
        import torch

        from framework.models.saved import export_program

        torch.export.save(export_program(saved.model, example, any_length=self.any_length), folder / MODEL)

    def load(self, folder: Path, threads: int) -> Predict:
        import torch

        from framework.models.saved import load_program

        torch.set_num_threads(threads)
        module = load_program(folder / MODEL)

        @torch.inference_mode()
        def predict(arrays: Sequence[npt.NDArray]) -> npt.NDArray:
            return module(*(torch.from_numpy(a) for a in arrays)).float().numpy()

        return predict
