"""A model repository for NVIDIA's Triton Inference Server."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.record.files import write_atomic

from .package import SIGNATURE

BACKENDS = {"onnx": ("onnxruntime", ["model.onnx"]), "openvino": ("openvino", ["model.xml", "model.bin"])}
_TYPES = {
    "float32": "FP32", "float16": "FP16", "int64": "INT64", "int32": "INT32", "uint8": "UINT8", "bool": "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Triton:
    """Writes `<experiment>/config.pbtxt` and `<experiment>/1/<model>`, as `tritonserver --model-repository` takes them.

    Clients send inputs as the model takes them; `signature.json`, which lies beside, says how they are prepared.

    Args:
        of: the target whose model is served: `onnx` or `openvino`.
        max_batch: the largest batch that the server makes of requests.
        max_queue_delay_us: how long it waits for one to fill, in microseconds.
        instances: how many copies of the model run at once.
    """

    of: str = "onnx"
    max_batch: int = 64
    max_queue_delay_us: int = 100
    instances: int = 1

    def write(self, package: Path, name: str, folder: Path) -> None:
        signature = json.loads((package / SIGNATURE).read_text(encoding="utf-8"))
        backend, files = BACKENDS[self.of]
        (folder / name / "1").mkdir(parents=True)
        for file in files:
            shutil.copyfile(package / file, folder / name / "1" / file)
        shutil.copyfile(package / SIGNATURE, folder / name / SIGNATURE)
        write_atomic(folder / name / "config.pbtxt", self._config(name, backend, signature))

    def _config(self, name: str, backend: str, signature: dict[str, Any]) -> str:
        return "\n".join(
            [
                f'name: "{name}"',
                f'backend: "{backend}"',
                f"max_batch_size: {self.max_batch}",
                *(f"input [ {_tensor(given)} ]" for given in signature["inputs"]),
                f"output [ {_tensor(signature['output'])} ]",
                f"instance_group [ {{ count: {self.instances} kind: KIND_AUTO }} ]",
                f"dynamic_batching {{ max_queue_delay_microseconds: {self.max_queue_delay_us} }}",
                "",
            ]
        )


def _tensor(given: dict[str, Any]) -> str:
    """Return one input or output in Triton's words, without the batch axis; a free axis is -1."""
    dims = ", ".join(str(n) if isinstance(n, int) else "-1" for n in given["shape"][1:])
    return f'{{ name: "{given["name"]}" data_type: TYPE_{_TYPES[given["dtype"]]} dims: [ {dims} ] }}'
