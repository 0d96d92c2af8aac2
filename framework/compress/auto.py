"""Searches a chain of passes and its ratio: the smallest latency that keeps the metric within a budget."""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from framework.config.components import as_plain, build
from framework.errors import UserError
from framework.export.process import RuntimeProcess
from framework.export.targets import ExportTarget, Layout
from framework.models.saved import SavedModel
from framework.record.console import say
from framework.training.workbench import Workbench

from .passes import Compressed, CompressionPass

_HOME = "framework.compress"
_SHRINK = {
    "structured_pruning": f"{_HOME}.structured_pruning.StructuredPruning",
    "low_rank_factorisation": f"{_HOME}.low_rank_factorisation.LowRankFactorisation",
}
_QUANTISE = {
    "static_int8": f"{_HOME}.static_int8.StaticInt8",
    "qat_int8": f"{_HOME}.qat_int8.QatInt8",
    "weight_int8": f"{_HOME}.weight_only.WeightOnly",
}
_NOTHING = "none"


@dataclass(frozen=True)
class Auto:
    """Tries chains, each from the same trained model, and keeps the fastest that loses little on the validation split.

    A chain is a pass that makes the model smaller, by some ratio, and one that quantises; each may be left out. It is
    timed in the runtime of the experiment's first export target, on `measure.threads` threads.

    Args:
        max_drop: how much of the monitored metric may be lost, in its units.
        trials: how many chains are tried, the empty one included.
        shrink: what may make it smaller: `none`, `structured_pruning`, `low_rank_factorisation`.
        quantise: what may follow: `none`, `static_int8`, `qat_int8`, `weight_int8`.
        ratios: smallest and largest ratio of `shrink` (the share that goes for pruning, that stays for factorisation).
        finetune: how long each is trained after it, as a share of the experiment's own training.
        batch: rows of the batch that is timed.
    """

    max_drop: float = 0.005
    trials: int = 12
    shrink: Sequence[str] = (_NOTHING, *_SHRINK)
    quantise: Sequence[str] = (_NOTHING, "static_int8")
    ratios: Sequence[float] = (0.3, 0.8)
    finetune: float = 0.6
    batch: int = 1

    def __post_init__(self) -> None:
        for key, options in (("shrink", _SHRINK), ("quantise", _QUANTISE)):
            if unknown := set(getattr(self, key)) - {_NOTHING, *options}:
                wanted = ", ".join([_NOTHING, *options])
                raise UserError(f"compress.auto.{key}: {min(unknown)} is none of {wanted}")
        if len(self.ratios) != 2 or not 0 < self.ratios[0] <= self.ratios[1] < 1:
            raise UserError(f"compress.auto.ratios: two numbers between 0 and 1 are wanted, and not {self.ratios}")
        if self.trials < 1:
            raise UserError("compress.auto.trials: at least one is needed")

    def apply(self, model: nn.Module, bench: Workbench, folder: Path) -> Compressed:
        if isinstance(model, torch.fx.GraphModule):
            raise UserError("compress: auto cannot follow a pass that makes a captured graph; put it first")
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        monitor, sign = f"val/{bench.task.monitor}", -1 if bench.task.mode == "max" else 1
        whole = bench.evaluate(model, "val")[0][monitor]
        sampler = optuna.samplers.TPESampler(
            seed=bench.config.seed, constraints_func=lambda trial: [trial.user_attrs["drop"] - self.max_drop]
        )
        study = optuna.create_study(direction="minimize", sampler=sampler)
        study.enqueue_trial({"shrink": _NOTHING, "quantise": _NOTHING})
        rows: list[dict[str, Any]] = []
        best: tuple[float, Compressed] | None = None
        for number in range(self.trials):
            trial = study.ask()
            chain = self._chain(trial)
            try:
                found, changes = self._compressed(chain, copy.deepcopy(model), bench, folder / f"trial_{number}")
                latency = self._latency(found, bench)
            except UserError as error:
                trial.set_user_attr("drop", float("inf"))
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                rows.append({"trial": number, **trial.params, "error": str(error).splitlines()[0]})
                continue
            metric = bench.evaluate(found, "val")[0][monitor]
            drop = sign * (metric - whole)
            trial.set_user_attr("drop", drop)
            study.tell(trial, latency)
            kept = drop <= self.max_drop
            rows.append({"trial": number, **trial.params, "latency_ms": latency, monitor: metric, "kept": kept})
            names = " + ".join(chain) or "nothing"
            say(f"  auto: {names}: {latency:.3f} ms, {monitor} {metric:.4f}{'' if kept else ', which is too little'}")
            if kept and (best is None or latency < best[0]):
                best = latency, Compressed(found, {"changes": changes})
        bench.experiment.record.add_table("auto", rows)
        if best is None:
            raise UserError("compress.auto: not even the model as it was could be exported; see the errors above")
        return best[1]

    def _chain(self, trial: Any) -> dict[str, dict[str, Any]]:
        """Return the passes of a trial by name, as config nodes."""
        chain: dict[str, dict[str, Any]] = {}
        shrink = trial.suggest_categorical("shrink", list(self.shrink))
        if shrink != _NOTHING:
            ratio = trial.suggest_float("ratio", *self.ratios)
            chain[shrink] = {"_target_": _SHRINK[shrink], "ratio": ratio, "finetune": self.finetune}
        quantise = trial.suggest_categorical("quantise", list(self.quantise))
        if quantise != _NOTHING:
            chain[quantise] = {"_target_": _QUANTISE[quantise]}
        return chain

    def _compressed(
        self, chain: Mapping[str, dict[str, Any]], model: nn.Module, bench: Workbench, folder: Path
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Return the model after a chain, and what `restore` needs of it."""
        changes = []
        bench.seed()
        for name, node in chain.items():
            step: CompressionPass = build(node, f"compress.auto.{name}")
            found = step.apply(model, bench, folder / name)
            model = found.model
            changes.append({"node": node, "state": dict(found.state)})
        return model, changes

    def _latency(self, model: nn.Module, bench: Workbench) -> float:
        """Return the median milliseconds of a batch in the runtime that the model is meant for."""
        nodes = as_plain(bench.config.export)
        targets: dict[str, ExportTarget | Layout] = {n: build(node, f"export.{n}") for n, node in nodes.items()}
        name = next((n for n, target in targets.items() if not isinstance(target, Layout)), None)
        if name is None:
            raise UserError("compress.auto: it times models as they are exported; name a target, as in export=onnx")
        node, target, example = nodes[name], targets[name], bench.example(max(2, self.batch))
        assert not isinstance(target, Layout)
        with tempfile.TemporaryDirectory(prefix="framework-auto-") as place:
            target.export(SavedModel(model, as_plain(bench.config.model)), example, bench.task.inputs, Path(place))
            with RuntimeProcess(name, node, Path(place), bench.config.measure.threads) as process:
                arrays = [x[: self.batch].numpy() for x in example]
                return statistics.median(process.time(arrays, bench.config.measure.seconds))

    def restore(self, model: nn.Module, state: Mapping[str, Any]) -> nn.Module:
        for change in state["changes"]:
            model = build(change["node"], "compress.auto").restore(model, change["state"])
        return model
