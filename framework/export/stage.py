"""The stage `export`: every target written, loaded in its own runtime, compared with the model, and timed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from framework.config.components import as_plain, build_set
from framework.data.dataset import dataset_of
from framework.data.loader import EvalLoader
from framework.errors import UserError
from framework.models.saved import SavedModel, load_model
from framework.record.console import bytes_text, progress, say
from framework.record.experiment import Experiment
from framework.record.files import folder_aside, size_of
from framework.training.tasks import forward
from framework.training.workbench import Workbench

from .package import EXAMPLES, ROWS, write_card, write_checksums, write_program, write_signature
from .process import RuntimeProcess
from .targets import ExportTarget
from .verification import compare, model_inputs, tolerance_of

ROUNDS = 3
EAGER = {"_target_": "framework.export.eager.Eager"}


def run(experiment: Experiment) -> None:
    """Leave `export/<target>/` for each target, verified, with latencies beside those of the trained model."""
    targets: dict[str, ExportTarget] = build_set(experiment.config.export, "export")
    if not targets:
        say("  no targets")
        return
    nodes = as_plain(experiment.config.export)
    bench = Workbench(experiment, dataset_of(experiment))
    bench.seed()
    trained = experiment.require_artifact("model/trained", made_by="train")
    folder = trained
    if experiment.config.compress:
        folder = experiment.require_artifact("model/compressed", made_by="compress")
    saved = load_model(folder)
    signature, examples = _signature(experiment, bench, saved), _examples(bench, saved)
    for name, target in targets.items():
        final = experiment.folder / "export" / name
        with folder_aside(final) as aside:
            target.export(saved.model, bench.example(), list(bench.task.inputs), aside)
            size = size_of(aside)
            write_signature(aside, signature)
            write_program(aside, getattr(target, "loader_source", None), tolerance_of(saved).difference)
            np.savez(aside / EXAMPLES, **examples)  # type: ignore[arg-type]
        experiment.record.add_metrics({f"export/{name}/bytes": size})
        say(f"  {name}: written, {bytes_text(size)}")
    experiment.record.add_metrics({"eager/bytes": size_of(trained)})
    threads = experiment.config.measure.threads
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(RuntimeProcess(name, node, place, threads))
            for name, node, place in (
                ("eager", EAGER, trained),
                *((name, nodes[name], experiment.folder / "export" / name) for name in targets),
            )
        }
        _verify(experiment, bench, saved, {name: processes[name] for name in targets})
        _time(experiment, bench, processes)
    for name in targets:
        final = experiment.folder / "export" / name
        write_card(final, name, experiment.record, as_plain(experiment.config), signature)
        write_checksums(final)
        experiment.record.add_artifact(f"export/{name}", final, "export")


def _signature(experiment: Experiment, bench: Workbench, saved: SavedModel) -> dict[str, Any]:
    """Return what goes in, what comes out, what is done before, and where it all came from."""
    record, data = experiment.record, experiment.config.data
    source = record if record.artifact_path("model/trained") or experiment.earlier is None else experiment.earlier
    return {
        "inputs": [
            {"name": name, "dtype": str(x.dtype).removeprefix("torch."), "shape": ["batch", *x.shape[1:]]}
            for name, x in zip(bench.task.inputs, bench.example(), strict=True)
        ],
        "output": {"name": "output", "labels": as_plain(data.labels)},
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


def _examples(bench: Workbench, saved: SavedModel) -> dict[str, npt.NDArray]:
    """Return rows of the test split as the model takes them, raw where each input is one field, and its outputs."""
    prepared = bench.eval_loader("test").rows(0, ROWS)
    raw = EvalLoader(bench.dataset, "test", ROWS).rows(0, ROWS)
    with torch.inference_mode():
        found = {"output": forward(saved.model, bench.task, prepared).float().numpy()}
    for name in bench.task.inputs:
        found[name] = prepared[name].numpy()
        if name in raw:
            found[f"raw_{name}"] = raw[name].numpy()
    return found


def _verify(
    experiment: Experiment, bench: Workbench, saved: SavedModel, processes: Mapping[str, RuntimeProcess]
) -> None:
    record, monitor = experiment.record, bench.task.monitor
    tolerance = tolerance_of(saved)
    own, comparisons = compare(bench, saved.model, processes)
    record.add_metrics({f"compressed/{k}": v for k, v in own.items()})
    complaints = []
    for name, compared in comparisons.items():
        record.add_metrics(
            {f"export/{name}/{k}": v for k, v in compared.metrics.items()}
            | {
                f"export/{name}/max_difference": compared.max_difference,
                f"export/{name}/mean_difference": compared.mean_difference,
                f"export/{name}/agreement": compared.agreement,
            }
        )
        say(
            f"  {name}: {compared.rows:,} test rows: {monitor} {compared.metrics[monitor]:.4f}, decisions agree "
            f"{compared.agreement:.2%}, largest difference {compared.max_difference:.2g}"
        )
        if complaint := compared.complaint(tolerance):
            complaints.append(f"export.{name}: it is not the model it was made from: {complaint}")
    record.update(verified=not complaints)
    if complaints and experiment.config.measure.on_mismatch == "fail":
        raise UserError("\n".join([*complaints, "measure.on_mismatch=warn goes on all the same"]))
    for complaint in complaints:
        say(f"  warning: {complaint}")


def _time(experiment: Experiment, bench: Workbench, processes: Mapping[str, RuntimeProcess]) -> None:
    """Time all runtimes in turns, so that what else the machine does meets them alike."""
    sizes: Sequence[int] = list(experiment.config.measure.batch_sizes)
    share = experiment.config.measure.seconds / ROUNDS
    batch = next(iter(bench.eval_loader("test")))
    latencies: dict[tuple[str, int], list[float]] = {(n, s): [] for n in processes for s in sizes}
    with progress("timing", ROUNDS * len(latencies), "measurements") as advance:
        for _ in range(ROUNDS):
            for (name, rows), found in latencies.items():
                found += processes[name].time(model_inputs(bench.task.inputs, batch, rows), share)
                advance()
    metrics = {}
    for (name, rows), found in latencies.items():
        prefix = name if name == "eager" else f"export/{name}"
        median = statistics.median(found)
        metrics[f"{prefix}/latency_ms_b{rows}"] = median
        metrics[f"{prefix}/latency_p90_ms_b{rows}"] = sorted(found)[int(0.9 * (len(found) - 1))]
        if name != "eager":
            metrics[f"{prefix}/speedup_b{rows}"] = metrics[f"eager/latency_ms_b{rows}"] / median
    experiment.record.add_metrics(metrics)
