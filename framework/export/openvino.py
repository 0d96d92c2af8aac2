"""OpenVINO's intermediate representation, run by OpenVINO on the CPU."""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy.typing as npt

from framework.errors import UserError

from .onnx import MODEL as ONNX_MODEL
from .onnx import Onnx
from .targets import Predict, innermost_reason

if TYPE_CHECKING:
    from torch import Tensor

    from framework.models.saved import SavedModel

MODEL = "model.xml"


@dataclass(frozen=True)
class OpenVino:
    """Writes `model.xml` and `model.bin`, batch axis dynamic.

    Args:
        half: store weights as float16 (OpenVINO computes in what the processor does best all the same).
        any_length: whether sequences of tokens may be of any length up to that of the training data.
    """

    half: bool = False
    any_length: bool = False

    loader_source: ClassVar[str] = """
def load(folder, threads):
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", settings)
    return lambda arrays: compiled(list(arrays))[0]
"""

    def export(self, saved: SavedModel, example: Sequence[Tensor], inputs: Sequence[str], folder: Path) -> None:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it reports what is converted
        import openvino

        from framework.models.saved import export_program

        logging.getLogger("openvino").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                converted = openvino.convert_model(export_program(saved.model, example, any_length=self.any_length))
            except openvino.frontend.OpConversionFailure:  # operators of quantised graphs, which it knows from ONNX
                converted = self._by_onnx(saved, example, inputs)
            except RuntimeError as error:
                raise UserError(f"export.openvino: it cannot be converted: {innermost_reason(error)}") from error
        for given, name in zip(converted.inputs, inputs, strict=True):
            given.get_tensor().set_names({name})
        openvino.save_model(converted, folder / MODEL, compress_to_fp16=self.half)

    def _by_onnx(self, saved: SavedModel, example: Sequence[Tensor], inputs: Sequence[str]) -> Any:
        import openvino

        with tempfile.TemporaryDirectory() as place:
            Onnx(any_length=self.any_length).export(saved, example, inputs, Path(place))
            try:
                return openvino.convert_model(Path(place) / ONNX_MODEL)
            except RuntimeError as error:
                raise UserError(f"export.openvino: it cannot be converted: {innermost_reason(error)}") from error

    def load(self, folder: Path, threads: int) -> Predict:
        import openvino

        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        compiled = openvino.Core().compile_model(folder / MODEL, "CPU", settings)

        def predict(arrays: Sequence[npt.NDArray]) -> npt.NDArray:
            return compiled(list(arrays))[0]

        return predict
