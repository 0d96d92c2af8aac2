"""A package's `signature.json`: what goes in, what comes out, what is done before, and where it all came from."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from framework.config.components import as_plain
from framework.models.saved import SavedModel, is_sequence
from framework.record.experiment import Experiment
from framework.training.workbench import Workbench


def signature_of(experiment: Experiment, bench: Workbench, saved: SavedModel, any_length: bool) -> dict[str, Any]:
    """Return a package's signature as plain values; `any_length` as in `framework.models.saved.export_program`."""
    record, data = experiment.record, experiment.config.data
    source = record if record.artifact_path("model/trained") or experiment.earlier is None else experiment.earlier

    def shape(x: Tensor) -> list[Any]:
        return ["batch", "length", *x.shape[2:]] if any_length and is_sequence(x) else ["batch", *x.shape[1:]]

    example = bench.example()
    output = saved.model(*example)
    follows = any_length and output.dim() > 2 and any(is_sequence(x) for x in example)
    return {
        "inputs": [
            {"name": name, "dtype": str(x.dtype).removeprefix("torch."), "shape": shape(x)}
            for name, x in zip(bench.task.inputs, example, strict=True)
        ],
        "output": {
            "name": "output",
            "dtype": "float32",
            "shape": ["batch", *(["length", *output.shape[2:]] if follows else output.shape[1:])],
            "labels": as_plain(data.labels),
        },
        "preprocessing": as_plain(data.batch_transforms),
        "model": dict(saved.node),
        "compression": [change.name for change in saved.changes],
        "provenance": {
            "run": source["id"],
            "data": record["data"]["name"],
            "version": record["data"]["version"],
            "config": as_plain(experiment.config),
            "commit": (record.get("environment", {}).get("git") or {}).get("commit"),
        },
    }
