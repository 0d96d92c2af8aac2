"""The weights that a training begins with, where they are not drawn at random."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from framework.errors import UserError
from framework.models.saved import WEIGHTS_FILE
from framework.record.console import say
from framework.record.run import RUN_FILE, RunRecord

from .checkpoints import DESCRIPTION, read_checkpoint


def begin_from(model: nn.Module, path: Path) -> None:
    """Put the weights of a run, a checkpoint or a safetensors file into a model, where names and shapes are the same.

    Raises:
        UserError: when it is none of these, or nothing fits.
    """
    found = _weights(path)
    own = model.state_dict()
    fitting = {n: t for n, t in found.items() if n in own and own[n].shape == t.shape}
    if not fitting:
        names = f"the model has {', '.join(list(own)[:3])}, ..., and there is {', '.join(list(found)[:3])}, ..."
        raise UserError(f"trainer.start_from: nothing in `{path}` fits {type(model).__name__}: {names}")
    model.load_state_dict(fitting, strict=False)
    left = [name for name in own if name not in fitting]
    others = f"; left at random: {', '.join(left)}" if left else ""
    say(f"  {len(fitting)} of {len(own)} tensors from `{path}`{others}")


def _weights(path: Path) -> dict[str, Tensor]:
    if (path / RUN_FILE).exists():
        trained = RunRecord(path).artifact_path("model/trained")
        if trained is None:
            raise UserError(f"trainer.start_from: the run `{path}` has no trained model")
        return load_file(trained / WEIGHTS_FILE)
    if (path / DESCRIPTION).exists():
        return read_checkpoint(path)[1]
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises types of its own
        raise UserError(f"trainer.start_from: `{path}` is no run, checkpoint or safetensors file: {error}") from None
