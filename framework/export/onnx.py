"""ONNX, run by ONNX Runtime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from framework.errors import UserError

from .targets import Predict, innermost_reason

if TYPE_CHECKING:
    from torch import Tensor

    from framework.models.saved import SavedModel

MODEL, ENGINE = "model.onnx", "tensorrt.sh"


def _engine_script(example: Sequence[Tensor], inputs: Sequence[str]) -> str:
    """Return a program that builds a TensorRT engine of the model, for batches of 1 to 64."""
    rows = {name: [*x.shape[1:]] for name, x in zip(inputs, example, strict=True)}
    shapes = {n: ",".join(f"{name}:{'x'.join(map(str, [n, *row]))}" for name, row in rows.items()) for n in (1, 32, 64)}
    return f"""#!/bin/sh
# Builds model.plan, an engine for this machine's GPU, where NVIDIA's TensorRT is; options of trtexec go on.
cd "$(dirname "$0")" || exit 1
exec trtexec --onnx={MODEL} --saveEngine=model.plan --minShapes={shapes[1]} --optShapes={shapes[32]} \\
  --maxShapes={shapes[64]} "$@"
"""


@dataclass(frozen=True)
class Onnx:
    """Writes `model.onnx`, one file with the weights inside (below ONNX's limit of 2 GB), batch axis dynamic.

    Beside it lies `tensorrt.sh`, which builds an engine of it where TensorRT is.

    Args:
        opset: version of ONNX's operator set.
        any_length: whether sequences of tokens may be of any length up to that of the training data.
    """

    opset: int = 20
    any_length: bool = False

    loader_source: ClassVar[str] = """
def load(folder, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays)))[0]
"""

    def export(self, saved: SavedModel, example: Sequence[Tensor], inputs: Sequence[str], folder: Path) -> None:
        import torch

        from framework.models.saved import export_program

        program = export_program(saved.model, example, any_length=self.any_length)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in ("onnxscript", "torch.onnx", "onnx_ir"):
                logging.getLogger(name).setLevel(logging.ERROR)
            try:
                torch.onnx.export(
                    program,
                    tuple(example),
                    folder / MODEL,
                    dynamo=True,
                    input_names=list(inputs),
                    output_names=["output"],
                    opset_version=self.opset,
                    external_data=False,
                    verbose=False,
                )
            except (torch.onnx.OnnxExporterError, RuntimeError) as error:
                raise UserError(
                    f"export.onnx: the model cannot be written as ONNX: {innermost_reason(error)}"
                ) from error

        (folder / ENGINE).write_text(_engine_script(example, inputs), encoding="utf-8")

    def load(self, folder: Path, threads: int) -> Predict:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = onnxruntime.InferenceSession(folder / MODEL, options, providers=["CPUExecutionProvider"])
        names = [node.name for node in session.get_inputs()]
        return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0]
