"""Dynamic int8 quantisation of a captured graph: weights per channel, activations by the range of each call."""

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
from .quantised_graphs import capture, convert, quantizer, quiet


@dataclass(frozen=True)
class DynamicInt8:
    """Quantises linear layers to int8; nothing is calibrated."""

    def apply(self, model: nn.Module, bench: Workbench, folder: Path) -> Compressed:
        if not any(isinstance(m, nn.Linear) for m in model.modules()):
            raise UserError(f"compress.dynamic_int8: {type(model).__name__} has no linear layer")
        with quiet(), torch.no_grad():
            from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

            example = bench.example()
            prepared = prepare_pt2e(capture(model, example, "dynamic_int8"), quantizer(is_dynamic=True))
            prepared(*example)
            return Compressed(convert(prepared))

    def restore(self, model: nn.Module, state: Mapping[str, Any]) -> nn.Module:
        raise AssertionError("a quantised model is saved as a program and needs no restoring")
