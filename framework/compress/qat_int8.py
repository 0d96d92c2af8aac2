"""Quantisation-aware training: the model is trained as its int8 self would compute (Jacob et al., 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from framework.training.fit import fit
from framework.training.workbench import Workbench

from .passes import Compressed
from .quantised_graphs import calibrate, capture, convert, quantizer, quiet


@dataclass(frozen=True)
class QatInt8:
    """Trains with simulated int8 weights and activations, then quantises convolutions and linear layers for good.

    Args:
        length: how long to train, as a share of the experiment's own training.
        learning_rate_scale: factor on `optimizer.lr` for that.
        calibration_rows: rows of the train split that give the ranges of activations to begin with.
    """

    length: float = 0.3
    learning_rate_scale: float = 0.1
    calibration_rows: int = 512

    def apply(self, model: nn.Module, bench: Workbench, folder: Path) -> Compressed:
        with quiet():
            from torchao.quantization.pt2e import allow_exported_model_train_eval
            from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

            graph = capture(model, bench.example(), "qat_int8")
            prepared = prepare_qat_pt2e(graph, quantizer(is_qat=True))
            allow_exported_model_train_eval(prepared)
            with torch.no_grad():
                calibrate(prepared, bench, self.calibration_rows)
            fit(
                bench,
                prepared,
                folder,
                what="quantisation-aware training",
                length=self.length,
                learning_rate_scale=self.learning_rate_scale,
            )
            prepared.eval()
            with torch.no_grad():
                return Compressed(convert(prepared))

    def restore(self, model: nn.Module, state: Mapping[str, Any]) -> nn.Module:
        raise AssertionError("a quantised model is saved as a program and needs no restoring")
