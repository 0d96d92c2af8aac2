"""The stage `train`: from a dataset version to a trained model."""

from __future__ import annotations

from pathlib import Path

from framework.config.components import as_plain, build
from framework.data.dataset import dataset_of
from framework.models.saved import SavedModel, save_model
from framework.record.console import say
from framework.record.experiment import Experiment

from .beginning import begin_from
from .checkpoints import CheckpointFolder
from .fit import fit
from .low_rank import add_low_rank, merge_low_rank
from .workbench import Workbench


def run(experiment: Experiment) -> None:
    """Train, keep the best weights by the validation metric, and leave the artifact `model/trained`."""
    bench = Workbench(experiment, dataset_of(experiment))
    bench.seed()
    model = build(experiment.config.model, "model")
    if experiment.config.trainer.start_from is not None:
        begin_from(model, Path(experiment.config.trainer.start_from).expanduser())
    parameters = sum(p.numel() for p in model.parameters())
    if (lora := as_plain(experiment.config.trainer.lora))["rank"] is not None:
        add_low_rank(model, **lora)
        trained_ones = sum(p.numel() for p in model.parameters() if p.requires_grad)
        say(f"  lora: {trained_ones:,} of {parameters:,} parameters are trained")
    folder = experiment.folder / "checkpoints"
    resumed = CheckpointFolder(folder).exists()
    fitted = fit(bench, model, folder, what="training", log=experiment.log, resume=True)
    merge_low_rank(model)
    trained = experiment.folder / "model" / "trained"
    save_model(SavedModel(model.eval(), as_plain(experiment.config.model)), trained, bench.example())
    record = experiment.record
    record.add_artifact("model/trained", trained, "model")
    record.update(
        main_metric=bench.task.monitor,
        main_mode=bench.task.mode,
        effective={
            "precision": fitted.precision,
            "device": fitted.device,
            "strategy": experiment.config.strategy.name,
        },
    )
    record.add_metrics(
        {
            **fitted.metrics,
            "train/steps": fitted.steps,
            "train/skipped_steps": fitted.skipped,
            "model/parameters": parameters,
        }
    )
    metrics = ", ".join(f"{k} {v:.4f}" for k, v in fitted.metrics.items())
    went_on = " (went on from a checkpoint)" if resumed else ""
    where = f"{fitted.precision} on {fitted.device}{went_on}"
    say(f"  {parameters:,} parameters, {fitted.steps:,} steps in {where}: {metrics}")
