"""Static int8 quantisation of a captured graph: weights per channel, activations per tensor with calibrated ranges.

The result is a graph with quantise and dequantise operators, which targets export.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from framework.errors import UserError
from framework.training.workbench import Workbench

from .passes import Compressed
from .quantised_graphs import calibrate, capture, convert, quantizer, quiet


@dataclass(frozen=True)
class StaticInt8:
    """Quantises convolutions and linear layers to int8, weights and activations.

    Args:
        calibration_rows: rows of the train split from which the ranges of activations are taken.
    """

    calibration_rows: int = 512

    def __post_init__(self) -> None:
        if self.calibration_rows < 1:
            raise UserError("compress.static_int8.calibration_rows: at least one row is needed")

    def apply(self, model: nn.Module, bench: Workbench, folder: Path) -> Compressed:
        with quiet(), torch.no_grad():
            from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

            prepared = prepare_pt2e(capture(model, bench.example(), "static_int8"), quantizer())
            calibrate(prepared, bench, self.calibration_rows)
            return Compressed(convert(prepared))

    def restore(self, model: nn.Module, state: Mapping[str, Any]) -> nn.Module:
        raise AssertionError("a quantised model is saved as a program and needs no restoring")
