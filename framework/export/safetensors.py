"""Weights and config: what PyTorch and this project need to build the model again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from framework.errors import UserError

from .eager import Eager
from .targets import Predict

if TYPE_CHECKING:
    from torch import Tensor

    from framework.models.saved import SavedModel


@dataclass(frozen=True)
class Safetensors:
    """Writes `weights.safetensors` and `model.json`, which says how the model is built and what passes did to it."""

    def export(self, saved: SavedModel, example: Sequence[Tensor], inputs: Sequence[str], folder: Path) -> None:
        from framework.models.saved import save_model

        if saved.is_program:
            raise UserError("export.safetensors: a captured graph has no weights apart from itself; use torch_export")
        save_model(saved, folder, example)

    def load(self, folder: Path, threads: int) -> Predict:
        return Eager().load(folder, threads)
