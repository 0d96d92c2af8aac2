"""The stage `evaluate`: the trained model on the held-out test split."""

from __future__ import annotations

from framework.data.dataset import dataset_of
from framework.models.saved import load_model
from framework.record.console import say
from framework.record.experiment import Experiment
from framework.record.files import write_json

from .workbench import Workbench


def run(experiment: Experiment) -> None:
    """Record the test metrics, and leave matrices and texts for the report."""
    bench = Workbench(experiment, dataset_of(experiment))
    bench.seed()
    model = load_model(experiment.require_artifact("model/trained", made_by="train")).model
    metrics, matrices = bench.evaluate(model, "test")
    record = experiment.record
    record.add_metrics(metrics)
    for name, matrix in matrices.items():
        file = experiment.folder / "evaluation" / f"{name}.json"
        write_json(file, {"labels": _labels(experiment, len(matrix)), "values": matrix.tolist()})
        record.add_artifact(f"evaluation/{name}", file, "matrix")
    batch = next(iter(bench.eval_loader("test")))
    for title, text in bench.task.illustrate(model, batch).items():
        file = experiment.folder / "evaluation" / f"{title.lower().replace(' ', '_')}.json"
        write_json(file, {"title": title, "text": text})
        record.add_artifact(f"evaluation/{file.stem}", file, "text")
    say("  " + ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()))


def _labels(experiment: Experiment, count: int) -> list[str]:
    labels = experiment.config.data.labels
    return [str(x) for x in labels] if labels is not None else [str(i) for i in range(count)]
