"""Knowledge distillation: a model learns from a teacher's outputs beside the right answers (Hinton et al., 2015)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.config.annotations import ExistingDir
from framework.data.batch_transforms import Batch
from framework.errors import UserError
from framework.models.saved import load_model
from framework.record.run import RunRecord
from framework.training.fit import fit
from framework.training.tasks import MultiLabel, Regression, Task, forward
from framework.training.workbench import Workbench

from .passes import Compressed


@dataclass(frozen=True)
class Distillation:
    """Trains the model (as earlier passes left it) to give the outputs of a teacher.

    Args:
        teacher: a run, or a folder with a model; None for this experiment's own trained model, before compression.
        temperature: softens both sides' class probabilities.
        weight: of the teacher's part of the loss; the task's own has the rest.
        length: how long to train, as a share of the experiment's own training.
        learning_rate_scale: factor on `optimizer.lr` for that.
    """

    teacher: ExistingDir | None = None
    temperature: float = 2.0
    weight: float = 0.5
    length: float = 0.6
    learning_rate_scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise UserError(f"compress.distillation.weight: must lie above 0, and not above 1; it is {self.weight}")

    def apply(self, model: nn.Module, bench: Workbench, folder: Path) -> Compressed:
        if isinstance(model, torch.fx.GraphModule):
            raise UserError("compress: distillation cannot follow a pass that makes a captured graph; put it before")
        taught = Taught(bench.task, self._teacher(bench), self.temperature, self.weight)
        pupil_bench = replace(bench)
        pupil_bench.task = cast(Task, taught)
        fit(
            pupil_bench,
            model,
            folder,
            what="distilling",
            length=self.length,
            learning_rate_scale=self.learning_rate_scale,
        )
        return Compressed(model.eval())

    def _teacher(self, bench: Workbench) -> nn.Module:
        if self.teacher is None:
            return load_model(bench.experiment.require_artifact("model/trained", made_by="train")).model
        place = Path(self.teacher)
        if (place / "run.json").exists():
            record = RunRecord(place)
            found = record.artifact_path("model/trained") or record.artifact_path("model/compressed")
            if found is None:
                raise UserError(f"compress.distillation.teacher: the run `{place}` has no model")
            place = found
        teacher = load_model(place).model
        inputs = bench.example()
        try:
            with torch.no_grad():
                teacher(*inputs)
        except (RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"compress.distillation.teacher: it does not take this data: {reason}") from None
        return teacher

    def restore(self, model: nn.Module, state: Mapping[str, Any]) -> nn.Module:
        return model


class Taught:
    """A task whose loss has a part that compares with a teacher; the rest is the task's.

    Args:
        task: the experiment's.
        teacher: in evaluation mode.
        temperature, weight: see `Distillation`.
    """

    def __init__(self, task: Task, teacher: nn.Module, temperature: float, weight: float) -> None:
        self._task, self._teacher = task, teacher.requires_grad_(False)
        self._temperature, self._weight = temperature, weight

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the weighted sum of the task's loss and the divergence from the teacher's outputs."""
        with torch.no_grad():
            wanted = forward(self._teacher.to(outputs.device), self._task, batch).float()
        own = self._task.loss(outputs, batch)
        return (1 - self._weight) * own + self._weight * self._divergence(outputs.float(), wanted)

    def _divergence(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        t = self._temperature
        if isinstance(self._task, Regression):
            return F.mse_loss(outputs, wanted)
        if isinstance(self._task, MultiLabel):
            return F.binary_cross_entropy_with_logits(outputs / t, torch.sigmoid(wanted / t)) * t * t
        log_p, log_q = F.log_softmax(outputs / t, dim=-1), F.log_softmax(wanted / t, dim=-1)
        return (log_q.exp() * (log_q - log_p)).sum(-1).mean() * t * t
