"""A language model as ONNX that keeps what it has read: the prompt in one step, then token by token."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from framework.errors import UserError

from .onnx import MODEL
from .targets import Predict, innermost_reason

if TYPE_CHECKING:
    from torch import Tensor

    from framework.models.saved import SavedModel

GENERATE = "generate.py"
STEPS = 8


@dataclass(frozen=True)
class OnnxGeneration:
    """Writes `model.onnx`, which is prefill and decode step in one, and `generate.py`, which writes text with it.

    Its inputs are new tokens, and the keys and values of those before (none at first); its outputs are logits, and the
    keys and values of all. A model needs the methods `decode` and `empty_cache` of `framework.models.gpt.GPT`.

    Verification feeds all but the last 8 tokens of a window as a prompt and those one by one, so that both ways are
    compared with the model; that is what its latency is of.

    Args:
        opset: version of ONNX's operator set.
    """

    opset: int = 20

    loader_source: ClassVar[str] = """
class Decoder:
    \"\"\"Reads tokens and remembers them; a call returns the new ones' logits, [batch, time, vocabulary].\"\"\"

    def __init__(self, folder, threads=1):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self._session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        depth, _, heads, _, width = self._session.get_inputs()[1].shape
        self._empty = lambda batch: np.zeros((depth, batch, heads, 0, width), np.float32)
        self._past = None

    def reset(self):
        self._past = None

    def __call__(self, tokens):
        past = self._past or [self._empty(len(tokens))] * 2
        logits, *self._past = self._session.run(None, dict(zip(("tokens", "keys", "values"), (tokens, *past))))
        return logits


def load(folder, threads):
    decoder = Decoder(folder, threads)

    def predict(arrays):
        tokens, cut = arrays[0], max(1, arrays[0].shape[1] - 8)
        decoder.reset()
        parts = [tokens[:, :cut], *(tokens[:, i : i + 1] for i in range(cut, tokens.shape[1]))]
        return np.concatenate([decoder(part) for part in parts], axis=1)

    return predict
"""

    def export(self, saved: SavedModel, example: Sequence[Tensor], inputs: Sequence[str], folder: Path) -> None:
        import torch

        model: Any = saved.model
        if not all(callable(getattr(model, name, None)) for name in ("decode", "empty_cache")):
            raise UserError(
                f"export.onnx_generation: {type(model).__name__} has no decode step (`decode`, `empty_cache`); use onnx"
            )
        any_size = torch.export.Dim.DYNAMIC
        cache = {1: torch.export.Dim("batch", min=1, max=65_536), 3: any_size}
        given = (example[0][:, :5].contiguous(), model.empty_cache(2, 7), model.empty_cache(2, 7))
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            for name in ("onnxscript", "torch.onnx", "onnx_ir"):
                logging.getLogger(name).setLevel(logging.ERROR)
            try:
                program = torch.export.export(
                    _Decoding(model).eval(), given, dynamic_shapes=({0: cache[1], 1: any_size}, cache, cache)
                )
                torch.onnx.export(
                    program,
                    given,
                    folder / MODEL,
                    dynamo=True,
                    input_names=["tokens", "keys", "values"],
                    output_names=["logits", "all_keys", "all_values"],
                    opset_version=self.opset,
                    external_data=False,
                    verbose=False,
                )
            except Exception as error:
                raise UserError(
                    f"export.onnx_generation: the decode step cannot be written as ONNX: {innermost_reason(error)}"
                ) from error
        source = Path(__file__).parent / f"{GENERATE}.txt"
        (folder / GENERATE).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")

    def load(self, folder: Path, threads: int) -> Predict:
        names: dict[str, Any] = {"np": np}
        exec(self.loader_source, names)  # the very code that goes into the package
        loaded: Predict = names["load"](folder, threads)

        def predict(arrays: Sequence[npt.NDArray]) -> npt.NDArray:
            return loaded(arrays)

        return predict


def _Decoding(model: Any) -> Any:
    """Return a module whose `forward` is a model's decode step."""
    from torch import nn

    class Decoding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.model.decode(tokens, keys, values)

    return Decoding()
