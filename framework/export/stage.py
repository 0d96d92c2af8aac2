"""The stage `export`: every target written, loaded in its own runtime, compared with the model, and timed.

What becomes of one target does not touch the others: those that work are kept, and the stage then fails with what the
others said.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from framework.config.components import as_plain, build_set
from framework.data.dataset import dataset_of
from framework.data.loader import EvalLoader
from framework.data.text_transforms import TOKENIZER
from framework.errors import UserError
from framework.models.saved import SavedModel, load_model
from framework.record.console import bytes_text, say
from framework.record.experiment import Experiment
from framework.record.files import folder_aside, size_of
from framework.training.tasks import forward
from framework.training.workbench import Workbench

from .package import EXAMPLES, ROWS, write_card, write_checksums, write_program, write_signature
from .process import RuntimeProcess
from .signature import signature_of
from .targets import ExportTarget, Layout
from .timing import time_all
from .verification import Comparison, compare, model_inputs, tolerance_of

EAGER = {"_target_": "framework.export.eager.Eager"}


def run(experiment: Experiment) -> None:
    """Leave `export/<target>/` for each target, verified, with latencies beside those of the trained model."""
    chosen: dict[str, ExportTarget | Layout] = build_set(experiment.config.export, "export")
    layouts = {name: one for name, one in chosen.items() if isinstance(one, Layout)}
    targets = {name: one for name, one in chosen.items() if not isinstance(one, Layout)}
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
    failed = _write(experiment, bench, saved, targets)
    written = [name for name in targets if name not in failed]
    with ExitStack() as stack:

        def started(name: str, node: Mapping[str, Any], place: Path) -> RuntimeProcess:
            return stack.enter_context(RuntimeProcess(name, node, place, experiment.config.measure.threads))

        runtimes = {name: started(name, nodes[name], experiment.folder / "export" / name) for name in written}
        originals = {"eager": started("eager", EAGER, trained)}
        if experiment.config.measure.compiled:
            originals["compiled"] = started("compiled", {**EAGER, "compiled": True}, trained)
        failed |= _weigh(experiment, bench, runtimes, originals)
        own, comparisons, refused = compare(bench, saved.model, _without(runtimes, failed))
        failed |= refused | _judge(experiment, bench, saved, own, comparisons)
        timed = originals | {f"export/{name}": process for name, process in _without(runtimes, failed).items()}
        sizes, seconds = list(experiment.config.measure.batch_sizes), experiment.config.measure.seconds
        experiment.record.add_metrics({"eager/bytes": size_of(trained), **time_all(bench, timed, sizes, seconds)})
    experiment.record.update(verified=not failed and all(_within(saved, c) for c in comparisons.values()))
    for name in written:
        if name not in failed:
            _pack(experiment, bench, saved, name, targets[name])
    for name, layout in layouts.items():
        if layout.of not in failed:
            _lay_out(experiment, name, layout)
    if failed:
        raise UserError("\n".join(failed.values()))


def _write(
    experiment: Experiment, bench: Workbench, saved: SavedModel, targets: Mapping[str, ExportTarget]
) -> dict[str, str]:
    """Write every target's files; returns what went wrong, by target."""
    failed, examples = {}, _examples(bench, saved)
    for name, target in targets.items():
        try:
            with folder_aside(experiment.folder / "export" / name) as aside:
                target.export(saved, bench.example(), list(bench.task.inputs), aside)
                size = size_of(aside)
                write_program(aside, getattr(target, "loader_source", None), tolerance_of(saved).difference)
                np.savez(aside / EXAMPLES, **examples)  # type: ignore[arg-type]
        except UserError as error:
            failed[name] = str(error) if str(error).startswith("export.") else f"export.{name}: {error}"
            say(f"  {name}: failed")
            continue
        experiment.record.add_metrics({f"export/{name}/bytes": size})
        say(f"  {name}: written, {bytes_text(size)}")
    return failed


def _examples(bench: Workbench, saved: SavedModel) -> dict[str, npt.NDArray]:
    """Return rows of the test split as the model takes them, raw where each input is one field, and its outputs."""
    prepared = bench.eval_loader("test").rows(0, ROWS)
    raw = EvalLoader(bench.dataset, "test", ROWS).rows(0, ROWS)
    with torch.inference_mode():
        found = {"output": forward(saved.model, bench.task, prepared).float().numpy()}
    for name in bench.task.inputs:
        found[name] = prepared[name].numpy()
        if name in raw and raw[name].shape == prepared[name].shape:
            found[f"raw_{name}"] = raw[name].numpy()
    return found


def _weigh(
    experiment: Experiment,
    bench: Workbench,
    runtimes: Mapping[str, RuntimeProcess],
    originals: Mapping[str, RuntimeProcess],
) -> dict[str, str]:
    """Record the most memory that each process takes to load its model and run one batch; returns who cannot."""
    batch, rows, failed = next(iter(bench.eval_loader("test"))), max(experiment.config.measure.batch_sizes), {}
    for name, process in {**originals, **runtimes}.items():
        try:
            found = process.peak_memory(model_inputs(bench.task.inputs, batch, rows))
        except UserError as error:
            failed[name] = str(error)
        else:
            prefix = f"export/{name}" if name in runtimes else name
            experiment.record.add_metrics({f"{prefix}/peak_memory_bytes": found})
    return failed


def _without(runtimes: Mapping[str, RuntimeProcess], failed: Mapping[str, str]) -> dict[str, RuntimeProcess]:
    return {name: process for name, process in runtimes.items() if name not in failed}


def _judge(
    experiment: Experiment,
    bench: Workbench,
    saved: SavedModel,
    own: Mapping[str, float],
    comparisons: Mapping[str, Comparison],
) -> dict[str, str]:
    """Record how exports compare with their model; returns those that fail for it."""
    record, monitor, failed = experiment.record, bench.task.monitor, {}
    record.add_metrics({f"compressed/{k}": v for k, v in own.items()})
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
        if complaint := compared.complaint(tolerance_of(saved)):
            text = f"export.{name}: it is not the model it was made from: {complaint}"
            if experiment.config.measure.on_mismatch == "fail":
                failed[name] = f"{text}; measure.on_mismatch=warn keeps it all the same"
            else:
                say(f"  warning: {text}")
    return failed


def _within(saved: SavedModel, compared: Comparison) -> bool:
    return compared.complaint(tolerance_of(saved)) is None


def _pack(experiment: Experiment, bench: Workbench, saved: SavedModel, name: str, target: ExportTarget) -> None:
    """Add to a verified export what a stranger needs to serve it."""
    folder = experiment.folder / "export" / name
    signature = signature_of(experiment, bench, saved, any_length=getattr(target, "any_length", False))
    write_signature(folder, signature)
    dataset = Path(bench.dataset)
    if (tokenizer := dataset / TOKENIZER).exists():
        (folder / TOKENIZER).write_bytes(tokenizer.read_bytes())
    write_card(folder, name, experiment.record, as_plain(experiment.config), signature)
    write_checksums(folder)
    experiment.record.add_artifact(f"export/{name}", folder, "export")


def _lay_out(experiment: Experiment, name: str, layout: Layout) -> None:
    """Make a deployment layout of a package."""
    folder = experiment.folder / "export" / name
    with folder_aside(folder) as aside:
        layout.write(experiment.folder / "export" / layout.of, experiment.config.name, aside)
        write_checksums(aside)
    experiment.record.add_artifact(f"layout/{name}", folder, "layout")
    say(f"  {name}: made of {layout.of}")
