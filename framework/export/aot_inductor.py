"""AOTInductor: the model compiled to a shared library, which needs no Python to run."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy.typing as npt

from framework.errors import UserError

from .targets import Predict, innermost_reason

if TYPE_CHECKING:
    from torch import Tensor

    from framework.models.saved import SavedModel

MODEL = "model.pt2"


@dataclass(frozen=True)
class AotInductor:
    """Writes `model.pt2`, a package with compiled code for this kind of processor, batch axis dynamic.

    PyTorch's C++ runtime loads it (`AOTIModelPackageLoader`), and Python's (`torch._inductor.aoti_load_package`).

    Args:
        any_length: whether sequences of tokens may be of any length up to that of the training data.
    """

    any_length: bool = False

    loader_source: ClassVar[str] = """
def load(folder, threads):
    import torch
    import torch._inductor

    torch.set_num_threads(threads)
    model = torch._inductor.aoti_load_package(str(folder / "model.pt2"))

    def predict(arrays):
        with torch.inference_mode():
            return model(*(torch.from_numpy(a) for a in arrays)).float().numpy()

    return predict
"""

    def export(self, saved: SavedModel, example: Sequence[Tensor], inputs: Sequence[str], folder: Path) -> None:
        import torch
        from torch._inductor.exc import InductorError

        from framework.models.saved import export_program

        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            try:
                program = export_program(saved.model, example, any_length=self.any_length)
                torch._inductor.aoti_compile_and_package(program, package_path=str((folder / MODEL).resolve()))
            except (InductorError, RuntimeError) as error:
                raise UserError(
                    f"export.aot_inductor: the model cannot be compiled: {innermost_reason(error)}"
                ) from error

    def load(self, folder: Path, threads: int) -> Predict:
        import torch
        import torch._inductor

        torch.set_num_threads(threads)
        run = torch._inductor.aoti_load_package(str(folder / MODEL))

        @torch.inference_mode()
        def predict(arrays: Sequence[npt.NDArray]) -> npt.NDArray:
            return run(*(torch.from_numpy(a) for a in arrays)).float().numpy()

        return predict
