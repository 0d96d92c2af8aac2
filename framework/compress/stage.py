"""The stage `compress`: from the trained model, pass by pass, to a smaller one."""

from __future__ import annotations

import time
from typing import Any

import torch

from framework.config.components import as_plain, build_set
from framework.data.dataset import dataset_of
from framework.models.saved import Change, SavedModel, load_model, save_model
from framework.record.console import bytes_text, say
from framework.record.experiment import Experiment
from framework.training.workbench import Workbench

from .passes import CompressionPass, size_of_model
from .sensitivity import layer_sensitivity


def run(experiment: Experiment) -> None:
    """Apply every pass in order, leave the artifact `model/compressed`, and a row for each pass in the record."""
    passes: dict[str, CompressionPass] = build_set(experiment.config.compress, "compress")
    if not passes:
        say("  no passes")
        return
    nodes = as_plain(experiment.config.compress)
    bench = Workbench(experiment, dataset_of(experiment))
    bench.seed()
    record, example = experiment.record, bench.example()
    saved = load_model(experiment.require_artifact("model/trained", made_by="train"))
    monitor = f"val/{bench.task.monitor}"
    model = saved.model
    size, metric = size_of_model(model, example), bench.evaluate(model, "val")[0][monitor]
    rows: list[dict[str, Any]] = [{"pass": "trained", **vars(size), monitor: metric, "seconds": None}]
    changes: list[Change] = []
    sensitivity: list[dict[str, Any]] = []
    for name, compression in passes.items():
        if experiment.config.measure.sensitivity and not isinstance(model, torch.fx.GraphModule):
            sensitivity += layer_sensitivity(name, compression, model, bench, experiment.folder / "checkpoints" / name)
        began = time.perf_counter()
        compressed = compression.apply(model, bench, experiment.folder / "checkpoints" / name)
        model = compressed.model
        changes.append(Change(name, nodes[name], compressed.state))
        size, metric = size_of_model(model, example), bench.evaluate(model, "val")[0][monitor]
        rows.append({"pass": name, **vars(size), monitor: metric, "seconds": round(time.perf_counter() - began, 2)})
        record.add_metrics(
            {
                f"compress/{name}/parameters": size.parameters,
                f"compress/{name}/bytes": size.bytes,
                f"compress/{name}/macs": size.macs,
                f"compress/{name}/{monitor}": metric,
            }
        )
        before = rows[-2]
        say(
            f"  {name}: {before['parameters']:,} -> {size.parameters:,} parameters, "
            f"{bytes_text(before['bytes'])} -> {bytes_text(size.bytes)}, "
            f"{before['macs'] / 1e6:.2f} -> {size.macs / 1e6:.2f} M multiply-adds a row, "
            f"{monitor} {before[monitor]:.4f} -> {metric:.4f}"
        )
    record.add_table("compress", rows)
    if sensitivity:
        record.add_table("sensitivity", sensitivity)
    folder = experiment.folder / "model" / "compressed"
    save_model(SavedModel(model, saved.node, [*saved.changes, *changes]), folder, example)
    record.add_artifact("model/compressed", folder, "model")
