"""The stages of one experiment, in order; each hands over to the next through the run record alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from framework.config.components import as_plain, build_set
from framework.config.schema import Config, Stage
from framework.errors import Preempted, UserError, reason_of
from framework.record.catalogue import config_differences, status_of
from framework.record.console import duration_text, say, start_logging, stop_logging
from framework.record.environment import describe_environment, git_diff
from framework.record.experiment import Experiment, Tracker
from framework.record.files import write_atomic
from framework.record.interrupts import INTERRUPTS
from framework.record.run import RunRecord
from framework.record.summary import text_table

STAGES: Mapping[Stage, str] = {
    Stage.prepare: "framework.data.dataset",
    Stage.train: "framework.training.train",
    Stage.evaluate: "framework.training.evaluate",
    Stage.compress: "framework.compress.stage",
    Stage.export: "framework.export.stage",
    Stage.report: "framework.tracking.report",
}
"""Where each stage's `run(experiment)` lives; imported when its turn comes."""

METRICS_OF: Mapping[Stage, tuple[str, ...]] = {
    Stage.train: ("train/", "val/", "model/"),
    Stage.evaluate: ("test/",),
    Stage.compress: ("compress/",),
    Stage.export: ("export/", "eager/", "compressed/"),
}
_HOW_NOT_WHAT = (
    "stages", "from_run", "run_dir", "resume", "check", "outputs", "data.dask", "strategy",
    "trainer.threads", "trainer.hang_s", "trainer.checkpoint", "trainer.micro_batch_size",
)  # fmt: skip
"""Keys that may change when a run directory is continued: they say how it is run, and not what comes out."""


def run(config: DictConfig, overrides: Sequence[str] = (), watching: Sequence[Tracker] = ()) -> RunRecord:
    """Run an experiment.

    Args:
        config: the composed config (`framework.config.schema.Config`), already checked.
        overrides: what was typed, for the record.
        watching: trackers beside those of the config.

    Returns:
        the run's record.

    Raises:
        UserError: what the user can mend; the run is marked failed with the reason.
        Preempted: a signal stopped it; the same run directory goes on.
    """
    earlier = RunRecord(Path(config.from_run)) if config.from_run else None
    folder = Path(config.run_dir) if config.run_dir else unfinished(config) if config.resume == "auto" else None
    record = RunRecord.create(Path(config.outputs), config.name, folder)
    with record.lock(), INTERRUPTS:
        record.begin()
        _describe(record, config, overrides, earlier)
        start_logging(record.folder / "log.txt")
        say(f"{config.name}: {record.folder}")
        experiment = Experiment(config, record, earlier)
        try:
            experiment.trackers = [*build_set(config.tracker, "tracker").values(), *watching]
            started: list[Tracker] = []
            try:
                for tracker in experiment.trackers:
                    tracker.start(record, as_plain(config))
                    started.append(tracker)
                for stage in config.stages:
                    _run_stage(experiment, stage)
            except BaseException as error:
                record.end("preempted" if isinstance(error, Preempted) else "failed", reason_of(error))
                raise
            else:
                record.end("completed")
            finally:
                _finish(started, record)
            _say_summary(record)
        finally:
            stop_logging()
    return record


def rerun(earlier: RunRecord, outputs: Path) -> RunRecord:
    """Run the config of an earlier run again, on the same version of its data, in a new run directory."""
    stored = OmegaConf.load(earlier.folder / "config.yaml")
    config = OmegaConf.merge(OmegaConf.structured(Config), stored)
    assert isinstance(config, DictConfig)
    config.run_dir = None
    config.outputs = str(outputs)
    if (data := earlier.get("data")) is not None:
        config.data.version = data["version"]
        for name, part in data.get("mix", {}).items():
            config.data.mix[name].version = part["version"]
    typed = (earlier.folder / "overrides.txt").read_text(encoding="utf-8").splitlines()
    return run(config, typed)


def unfinished(config: DictConfig) -> Path | None:
    """Return the newest run of the same config that did not end, or ended badly; nobody runs it now."""
    for file in sorted(Path(config.outputs, config.name).glob("*/config.yaml"), reverse=True):
        record = RunRecord(file.parent)
        if status_of(record) not in ("completed", "running") and not _changed(file, config):
            return record.folder
    return None


def _changed(file: Path, config: DictConfig) -> dict[str, tuple[Any, Any]]:
    """Return what of a stored config is not as it is now, beside how it is run."""
    found = config_differences(OmegaConf.load(file), OmegaConf.create(OmegaConf.to_yaml(config, resolve=True)))
    return {k: v for k, v in found.items() if not f"{k}.".startswith(tuple(f"{h}." for h in _HOW_NOT_WHAT))}


def _finish(trackers: Sequence[Tracker], record: RunRecord) -> None:
    """Close the trackers; one that fails costs neither the run its result nor another tracker its end."""
    for tracker in trackers:
        try:
            tracker.finish(record)
        except Exception as error:
            say(f"warning: {type(tracker).__name__} did not finish: {reason_of(error)}")


def _run_stage(experiment: Experiment, stage: Stage) -> None:
    record = experiment.record
    if record["stages"].get(stage.value, {}).get("status") == "completed":
        say(f"{stage.value}: done before")
        return
    say(stage.value)
    with record.stage(stage.value):
        import_module(STAGES[stage]).run(experiment)


def _describe(record: RunRecord, config: DictConfig, overrides: Sequence[str], earlier: RunRecord | None) -> None:
    """Write down what is run and on what, or make sure that a run that goes on is still the same."""
    file = record.folder / "config.yaml"
    if file.exists() and (changed := _changed(file, config)):
        lines = "\n".join(f"  {k}: {a} -> {b}" for k, (a, b) in changed.items())
        raise UserError(f"run_dir: `{record.folder}` was begun with another config; take a new one:\n{lines}")
    write_atomic(file, OmegaConf.to_yaml(config, resolve=True))
    write_atomic(record.folder / "overrides.txt", "".join(f"{o}\n" for o in overrides))
    environment = describe_environment()
    if environment["git"] and environment["git"]["dirty"]:
        write_atomic(record.folder / "git.diff", git_diff())
    entries: dict[str, Any] = {"environment": environment, "group": config.group}
    if earlier is not None:
        entries["from_run"] = str(earlier.folder)
        _inherit(record, earlier, config.stages[0])
    record.update(**entries)


def _inherit(record: RunRecord, earlier: RunRecord, first: Stage) -> None:
    """Take over what the stages before `first` found out in the run that is continued."""
    before = list(Stage)[: list(Stage).index(first)]
    prefixes = tuple(p for stage in before for p in METRICS_OF.get(stage, ()))
    if prefixes:
        record.add_metrics({k: v for k, v in earlier.metrics.items() if k.startswith(prefixes)})
    if Stage.compress in before and "compress" in earlier["tables"]:
        record.add_table("compress", earlier["tables"]["compress"])
    record.update(**{k: earlier.get(k) for k in ("main_metric", "main_mode", "effective")})


def _say_summary(record: RunRecord) -> None:
    seconds = sum(stage.get("seconds", 0.0) for stage in record["stages"].values())
    table = text_table(record)
    say(f"\n{table}\n" if table else "")
    say(f"run     {record.folder}  ({duration_text(seconds)})")
    if (report := record.artifacts.get("report")) is not None:
        say(f"report  {record.folder / report.path}")
