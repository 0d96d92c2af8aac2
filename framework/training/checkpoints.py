"""Checkpoints on disk: written aside and renamed, each with checksums; the newest good one is found by itself.

`<folder>/step_<n>/` holds `state.pt` (optimizer, schedule, random generators, position in the data, best so far),
`weights.safetensors` (the full weights) and `checkpoint.json` (the step, and the checksums of the other two). It is the
same for every strategy and number of ranks.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from framework.errors import UserError
from framework.record.console import say
from framework.record.files import checksum, folder_aside, write_json

STATE, WEIGHTS, DESCRIPTION = "state.pt", "weights.safetensors", "checkpoint.json"
BEST = "best.safetensors"  # the best weights, beside the states
FORMAT = 1


class CheckpointFolder:
    """Writes, finds and reads the checkpoints of one training. Only rank 0 writes.

    Args:
        folder: where they lie.
        keep: how many of the newest stay.
        keep_every: checkpoints of steps that are a multiple of it stay, too.
        in_background: write in a thread, while training goes on.
    """

    def __init__(self, folder: Path, keep: int = 2, keep_every: int | None = None, in_background: bool = False) -> None:
        self.folder, self.keep, self.keep_every, self.in_background = folder, keep, keep_every, in_background
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def write(self, step: int, state: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """Write a checkpoint; in the background, the values must not change any more.

        Raises:
            OSError: when it, or the one before in the background, could not be written.
        """
        self.wait()
        if self.in_background:
            self._thread = threading.Thread(target=self._write_guarded, args=(step, state, weights), name="checkpoint")
            self._thread.start()
        else:
            self._write(step, state, weights)

    def wait(self) -> None:
        """Wait for what is written in the background."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write_guarded(self, step: int, state: dict[str, Any], weights: dict[str, Tensor]) -> None:
        try:
            self._write(step, state, weights)
        except BaseException as error:
            self._error = error

    def _write(self, step: int, state: dict[str, Any], weights: dict[str, Tensor]) -> None:
        with folder_aside(self.folder / f"step_{step:08d}") as aside:
            torch.save(state, aside / STATE)
            save_file(weights, aside / WEIGHTS)
            sums = {name: checksum(aside / name) for name in (STATE, WEIGHTS)}
            write_json(aside / DESCRIPTION, {"format": FORMAT, "step": step, "sha256": sums})
        for step_kept, old in list(self._found())[self.keep :]:
            if self.keep_every is None or step_kept % self.keep_every:
                shutil.rmtree(old, ignore_errors=True)

    def remove_leftovers(self) -> None:
        """Remove what killed writers have left half written."""
        for folder in self.folder.glob(".step_*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _found(self) -> Iterator[tuple[int, Path]]:
        """Yield step and folder of every checkpoint, newest first."""
        for folder in sorted(self.folder.glob("step_*"), reverse=True):
            yield int(folder.name.removeprefix("step_")), folder

    def exists(self) -> bool:
        """Return whether there is a checkpoint, good or not."""
        return any(True for _ in self._found())

    def newest(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Return state and weights of the newest good checkpoint; damaged ones are named and passed over.

        Raises:
            UserError: when there are checkpoints, and none is good.
        """
        seen = 0
        for step, folder in self._found():
            seen += 1
            try:
                return read_checkpoint(folder)
            except UserError as error:
                say(f"  warning: the checkpoint of step {step} is passed over: {error}")
        if seen:
            raise UserError(f"none of the {seen} checkpoints in `{self.folder}` is good; take a new run_dir")
        return None


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return state and weights of a checkpoint.

    Raises:
        UserError: when it is incomplete or damaged.
    """
    try:
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        for name, expected in described["sha256"].items():
            if checksum(folder / name) != expected:
                raise UserError(f"`{folder / name}` is damaged: its checksum does not fit")
        if described["format"] != FORMAT:
            raise UserError(
                f"`{folder}` has format {described['format']}; this version of the framework reads {FORMAT}"
            )
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        return state, load_file(folder / WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"`{folder}` is not a whole checkpoint: {error}") from None


def load_best(model: nn.Module, folder: Path) -> None:
    """Put the best weights of a training into the model."""
    model.load_state_dict(load_file(folder / BEST), strict=False)
