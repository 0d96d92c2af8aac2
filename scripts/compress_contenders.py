"""Other people's int8 quantisers; run by `bench_compress.py` in an environment that has them.

    python scripts/compress_contenders.py {onnx,openvino} MODEL ROWS.npy QUANTISED

ROWS are calibration rows as the model takes them.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def onnx(model: str, rows: str, quantised: str) -> None:
    """Quantise by ONNX Runtime: QDQ, weights per channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Rows(CalibrationDataReader):
        def __init__(self) -> None:
            self._rows = iter(np.split(np.load(rows), 16))

        def get_next(self) -> dict[str, Any] | None:
            found = next(self._rows, None)
            return None if found is None else {"image": found}

    quant_pre_process(model, quantised + ".pre", skip_symbolic_shape=True)
    quantize_static(
        quantised + ".pre",
        quantised,
        Rows(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
    )


def openvino(model: str, rows: str, quantised: str) -> None:
    """Quantise by NNCF."""
    import nncf
    import openvino as ov

    dataset = nncf.Dataset(list(np.split(np.load(rows), 512)))
    ov.save_model(nncf.quantize(ov.Core().read_model(model), dataset, subset_size=512), quantised)


if __name__ == "__main__":
    contender, *files = sys.argv[1:]
    {"onnx": onnx, "openvino": openvino}[contender](*files)
