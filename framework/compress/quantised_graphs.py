"""What the passes share that quantise a captured graph (PyTorch 2 Export quantisation, torchao)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from framework.errors import UserError
from framework.models.saved import export_program
from framework.training.workbench import Workbench


def capture(model: nn.Module, example: Sequence[Tensor], owner: str) -> torch.fx.GraphModule:
    """Return a model's graph, for any batch size.

    Raises:
        UserError: when it is a graph already, or has nothing to quantise.
    """
    if isinstance(model, torch.fx.GraphModule):
        raise UserError("compress: the model is quantised already; name one quantising pass, as the last")
    if not any(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules()):
        raise UserError(f"compress.{owner}: {type(model).__name__} has no convolution or linear layer")
    graph = export_program(model, example).module()
    assert isinstance(graph, torch.fx.GraphModule)
    return graph


def quantizer(**options: bool) -> Any:
    """Return torchao's quantizer for x86 processors; `options` are `is_qat` and `is_dynamic`."""
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    return X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(**options))


def calibrate(prepared: Callable[..., Tensor], bench: Workbench, rows: int) -> None:
    """Show a prepared graph some rows of the train split, so that its observers see the ranges of activations.

    Raises:
        UserError: when outputs are not finite.
    """
    seen = 0
    for batch in bench.eval_loader("train"):
        outputs = prepared(*(batch[name] for name in bench.task.inputs))
        if not torch.isfinite(outputs).all():
            raise UserError("compress: calibration rows of the train split give outputs that are not finite")
        seen += len(next(iter(batch.values())))
        if seen >= rows:
            break


def convert(prepared: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Return the quantised graph, without the float weights that conversion leaves behind."""
    from torchao.quantization.pt2e import allow_exported_model_train_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    quantised = convert_pt2e(prepared)
    allow_exported_model_train_eval(quantised)
    used = {node.target for node in quantised.graph.nodes if node.op == "get_attr"}
    for name in {n for n, _ in (*quantised.named_parameters(), *quantised.named_buffers())} - used:
        owner, _, attribute = name.rpartition(".")
        delattr(quantised.get_submodule(owner), attribute)
    return quantised


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what the libraries say of each other."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
