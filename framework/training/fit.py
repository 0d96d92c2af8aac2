"""One training of one model: used by the stage `train`, and by compression passes to fine-tune."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from framework.config.world import world_size

from .job import Fitted, Job, LogMetrics
from .ranks import train_on_ranks
from .workbench import Workbench


def fit(
    bench: Workbench,
    model: nn.Module,
    folder: Path,
    *,
    what: str,
    log: LogMetrics = lambda metrics, step: None,
    length: float = 1.0,
    learning_rate_scale: float = 1.0,
    resume: bool = False,
) -> Fitted:
    """Train a model in place, here or on several ranks; on return it holds the best weights.

    Args:
        bench: config, data and task.
        model: what is trained.
        folder: for checkpoints.
        what: shown beside the progress.
        log: receives metrics; by default nobody does.
        length: how long to train, as a share of `trainer.max_epochs` and `trainer.max_steps`.
        learning_rate_scale: factor on the optimizer's learning rate.
        resume: go on from the newest good checkpoint in `folder`, where there is one.

    Raises:
        Preempted: when a signal asked to stop; the state is saved.
        UserError: when the loss is not finite.
    """
    job = Job(what, length, learning_rate_scale, resume)
    if world_size(bench.config) > 1:
        return train_on_ranks(bench, model, folder, job, log)
    from .loop import train  # Lightning, which takes seconds to import: with several ranks, only they need it

    return train(bench, model, folder, job, log)
