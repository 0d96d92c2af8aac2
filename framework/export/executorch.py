"""ExecuTorch: a program for phones and other small devices, its operators handed to XNNPACK where that has them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from framework.errors import UserError

from .targets import Predict, innermost_reason

if TYPE_CHECKING:
    from torch import Tensor

    from framework.models.saved import SavedModel

MODEL = "model.pte"


@dataclass(frozen=True)
class ExecuTorch:
    """Writes `model.pte`.

    Args:
        largest_batch: memory is planned for it; larger batches are run in parts.
    """

    largest_batch: int = 32

    loader_source: ClassVar[str] = """
def load(folder, threads):
    import torch
    from executorch.runtime import Runtime

    model = Runtime.get().load_program(str(folder / "model.pte"))
    method = model.load_method("forward")
    return lambda arrays: method.execute([torch.from_numpy(a) for a in arrays])[0].float().numpy().copy()
"""

    def export(self, saved: SavedModel, example: Sequence[Tensor], inputs: Sequence[str], folder: Path) -> None:
        logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        from framework.models.saved import export_program

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                full = [x.repeat(self.largest_batch, *[1] * (x.dim() - 1))[: self.largest_batch] for x in example]
                program = export_program(saved.model, full, self.largest_batch)  # its memory is planned by the example
                lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
                content = lowered.to_executorch().buffer
            except Exception as error:
                raise UserError(f"export.executorch: the model cannot be lowered: {innermost_reason(error)}") from error
        (folder / MODEL).write_bytes(content)

    def load(self, folder: Path, threads: int) -> Predict:
        import torch
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(str(folder / MODEL))
        method = program.load_method("forward")
        largest = self.largest_batch

        def predict(arrays: Sequence[npt.NDArray]) -> npt.NDArray:
            found = []
            for start in range(0, len(arrays[0]), largest):
                part = [torch.from_numpy(np.ascontiguousarray(a[start : start + largest])) for a in arrays]
                found.append(method.execute(part)[0].float().numpy().copy())
            return found[0] if len(found) == 1 else np.concatenate(found)

        return predict
