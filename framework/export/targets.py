"""What an export target is.

To add one, write a class with the methods of `ExportTarget` and a YAML in `conf/export` whose first line is
`# @package export.<name>`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor, nn

Predict = Callable[[Sequence[npt.NDArray]], npt.NDArray]


class ExportTarget(Protocol):
    """A format that a model is written in, and the runtime that runs it."""

    def export(self, model: nn.Module, example: Sequence[Tensor], inputs: Sequence[str], folder: Path) -> None:
        """Write the model below `folder`, for any batch size.

        Args:
            model: in evaluation mode, on the CPU; possibly a captured graph (`torch.fx.GraphModule`).
            example: its inputs, with a batch of at least 2.
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
