"""A model on disk: enough to build it again without the run that made it.

A folder holds `model.json` (the model's config node, and what compression passes did to its structure) and
`weights.safetensors`; or, for a model that is a captured graph (after quantisation), `program.pt2`.
"""

from __future__ import annotations

import inspect
import json
import os
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from framework.config.components import build
from framework.errors import UserError
from framework.record.files import folder_aside, write_json

MODEL_FILE, WEIGHTS_FILE, PROGRAM_FILE = "model.json", "weights.safetensors", "program.pt2"


@dataclass(frozen=True)
class Change:
    """What one compression pass did: its config node, and the state from which `restore` redoes the structure."""

    name: str
    node: Mapping[str, Any]
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SavedModel:
    """A model with its description."""

    model: nn.Module
    node: Mapping[str, Any]
    changes: Sequence[Change] = ()

    @property
    def is_program(self) -> bool:
        """Whether the model is a captured graph, which can be run and exported but not trained or changed."""
        return isinstance(self.model, torch.fx.GraphModule)


def save_model(saved: SavedModel, folder: Path, example: Sequence[Tensor]) -> None:
    """Write a model; the folder appears whole or not at all.

    Args:
        saved: the model and its description.
        folder: where to.
        example: inputs of batch size >= 2, needed to write a captured graph.
    """
    from safetensors.torch import save_file

    with folder_aside(folder) as aside:
        if saved.is_program:
            torch.export.save(export_program(saved.model, example), aside / PROGRAM_FILE)
        else:
            save_file(_without_aliases(saved.model), aside / WEIGHTS_FILE)
        write_json(
            aside / MODEL_FILE,
            {"format": 1, "model": dict(saved.node), "changes": [asdict(c) for c in saved.changes]},
        )


def load_model(folder: Path) -> SavedModel:
    """Read a model back, in evaluation mode, on the CPU.

    Raises:
        UserError: when a file is missing or the weights do not fit the description.
    """
    from safetensors.torch import load_file

    try:
        described = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"`{folder}` holds no readable model: {error}") from None
    changes = [Change(**c) for c in described["changes"]]
    if (folder / PROGRAM_FILE).exists():
        return SavedModel(load_program(folder / PROGRAM_FILE), described["model"], changes)
    model: nn.Module = build(described["model"], "model")
    for change in changes:
        model = build(change.node, f"compress.{change.name}").restore(model, change.state)
    try:
        _, unexpected = model.load_state_dict(load_file(folder / WEIGHTS_FILE), strict=False)
        missing = set(_without_aliases(model)) - set(load_file(folder / WEIGHTS_FILE))
    except (RuntimeError, OSError) as error:
        raise UserError(f"the weights in `{folder}` do not fit its {MODEL_FILE}: {error}") from None
    if unexpected or missing:
        raise UserError(f"the weights in `{folder}` do not fit its {MODEL_FILE}: {sorted([*unexpected, *missing])}")
    return SavedModel(model.eval(), described["model"], changes)


def export_program(
    model: nn.Module, example: Sequence[Tensor], largest_batch: int = 65_536, any_length: bool = False
) -> torch.export.ExportedProgram:
    """Capture a model with a batch axis of any size up to a limit.

    Args:
        model: in evaluation mode, or a captured graph.
        example: its inputs, contiguous, with a batch of at least 2.
        largest_batch: the limit.
        any_length: whether the second axis of sequences of whole numbers (tokens) may be shorter than the example's.

    Raises:
        UserError: when its flow depends on values; the message has the line of code.
    """
    batch = torch.export.Dim("batch", min=1, max=largest_batch)
    module = model if isinstance(model, torch.fx.GraphModule) else model.eval()
    if any_length and isinstance(model, torch.fx.GraphModule):
        raise UserError("a captured graph takes inputs of one length only: any_length goes with no pass that makes one")
    kinds = [p.kind for p in inspect.signature(module.forward).parameters.values()]
    axes = [{0: batch} for _ in example]
    for given, wanted in zip(axes, example, strict=True):
        if any_length and is_sequence(wanted):
            given[1] = torch.export.Dim("length", min=1, max=wanted.shape[1])
    shapes: Any = tuple(axes)
    if inspect.Parameter.VAR_POSITIONAL in kinds[:1]:
        shapes = (shapes,)
    try:
        with torch.no_grad():
            return torch.export.export(module, tuple(example), dynamic_shapes=shapes)
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the model cannot be captured as a graph{_line_of(error)}: {reason}\nUse operations on tensors "
            "(torch.where, masks) where Python decides by their values, and sizes that follow the batch"
        ) from error


def is_sequence(x: Tensor) -> bool:
    """Return whether an input is a batch of sequences of whole numbers, such as tokens."""
    return x.dim() > 1 and not x.is_floating_point()


def _line_of(error: BaseException) -> str:
    """Return the last line of code outside of PyTorch that an error went through, as text."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}torch{os.sep}" not in f.filename]
    own = [f for f in frames if f.filename != __file__ and not f.filename.startswith("<")]
    return f", by `{own[-1].line}` ({own[-1].filename}:{own[-1].lineno})" if own else ""


def load_program(file: Path) -> nn.Module:
    """Load a `.pt2` file; the operators of quantised graphs are registered first."""
    import torch.ao.quantization.fx._decomposed

    return torch.export.load(file).module()


def _without_aliases(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict with each tensor once, contiguous (tied weights are stored under their first name)."""
    seen: dict[int, str] = {}
    kept = {}
    for name, tensor in model.state_dict().items():
        if tensor.numel() and seen.setdefault(tensor.data_ptr(), name) != name:
            continue
        kept[name] = tensor.detach().cpu().contiguous()
    return kept
