"""Static int8 quantisation of a captured graph (PyTorch 2 Export quantisation, torchao).

Weights are stored per channel, activations per tensor with ranges calibrated on rows of the train split. The result
is a graph with quantise and dequantise operators, which every target exports.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from framework.errors import UserError
from framework.models.saved import export_program
from framework.training.workbench import Workbench

from .passes import Compressed


@dataclass(frozen=True)
class StaticInt8:
    """Quantises convolutions and linear layers to int8, weights and activations.

    Args:
        calibration_rows: rows of the train split from which the ranges of activations are taken.
    """

    calibration_rows: int = 512

    def apply(self, model: nn.Module, bench: Workbench, folder: Path) -> Compressed:
        for name in ("torchao", "torch.utils._pytree"):  # they warn about each other
            logging.getLogger(name).setLevel(logging.ERROR)
        from torchao.quantization.pt2e import allow_exported_model_train_eval
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
            X86InductorQuantizer,
            get_default_x86_inductor_quantization_config,
        )

        if isinstance(model, torch.fx.GraphModule):
            raise UserError("compress: the model is quantised already; name one quantising pass, as the last")
        if not any(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules()):
            raise UserError(f"compress.static_int8: {type(model).__name__} has no convolution or linear layer")
        quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            graph = export_program(model, bench.example()).module()
            prepared = prepare_pt2e(graph, quantizer)
            seen = 0
            for batch in bench.eval_loader("train"):
                prepared(*(batch[name] for name in bench.task.inputs))
                seen += len(next(iter(batch.values())))
                if seen >= self.calibration_rows:
                    break
            quantised = convert_pt2e(prepared)
            allow_exported_model_train_eval(quantised)
        _drop_unused_weights(quantised)
        return Compressed(quantised)

    def restore(self, model: nn.Module, state: Mapping[str, Any]) -> nn.Module:
        raise AssertionError("a quantised model is saved as a program and needs no restoring")


def _drop_unused_weights(graph: torch.fx.GraphModule) -> None:
    """Remove the float weights that conversion leaves behind beside their int8 copies."""
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name in {n for n, _ in (*graph.named_parameters(), *graph.named_buffers())} - used:
        owner, _, attribute = name.rpartition(".")
        delattr(graph.get_submodule(owner), attribute)
