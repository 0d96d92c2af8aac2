"""What an export target is.

To add one, write a class with the methods of `ExportTarget` and a YAML in `conf/export` whose first line is
`# @package export.<name>`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

    from framework.models.saved import SavedModel

Predict = Callable[[Sequence[npt.NDArray]], npt.NDArray]


def innermost_reason(error: BaseException) -> str:
    """Return the first line of what an error comes from; exporters hide the operator they lack behind other errors."""
    while (within := error.__cause__) is not None:
        error = within
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@runtime_checkable
class Layout(Protocol):
    """A folder that a server or a cluster takes as it is, made of a verified package.

    Attributes:
        of: the target whose package it is made of.
    """

    of: str

    def write(self, package: Path, name: str, folder: Path) -> None:
        """Write the layout below an empty folder; `name` is the experiment's."""


class ExportTarget(Protocol):
    """A format that a model is written in, and the runtime that runs it.

    A class attribute `loader_source`, where there is one, is the source of a function `load(folder, threads)` that does
    what the method does with NumPy and the runtime alone; the package then has a `predict.py`.
    """

    def export(self, saved: SavedModel, example: Sequence[Tensor], inputs: Sequence[str], folder: Path) -> None:
        """Write the model below `folder`, for any batch size.

        Args:
            saved: the model, in evaluation mode, on the CPU; possibly a captured graph (`SavedModel.is_program`).
            example: its inputs, contiguous, with a batch of at least 2.
            inputs: the inputs' names.
            folder: an empty folder.

        Raises:
            UserError: when the model cannot be written in this format.
        """

    def load(self, folder: Path, threads: int) -> Predict:
        """Load what `export` wrote into its runtime; called in a process of its own.

        Returns:
            a function from input arrays, in order, to the output array; the first axis is the batch.
        """
