"""What our sweepers have in common: reading the command, finding the sweep to go on with, running it, summing it up."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from framework.config.components import as_plain
from framework.config.machine import assume_nodes
from framework.config.schema import TrainerConfig
from framework.config.signatures import default_of
from framework.errors import EXIT_FAILED, EXIT_PREEMPTED, EXIT_USER, Ended, Preempted, UserError
from framework.launch.backend import Backend
from framework.launch.cluster import ClusterLauncher
from framework.launch.foreign import LauncherBackend, run_named_job
from framework.launch.hydra_launcher import LocalLauncher
from framework.record.console import duration_text, say, start_logging, stop_logging

from .controller import Controller, Rules, explain_end
from .objectives import Constraint, Objective, read_objective
from .plan import ComposedPlan
from .report import write_report
from .results import trial_rows, write_best, write_tables
from .search import Search, State
from .space import Space, read_space
from .trials import SweepFolder
from .watch import SweepWatcher, values_text

_HOW_NOT_WHAT = (
    "n_jobs", "n_trials", "retries", "trial_timeout_s", "max_failures", "time_budget_s", "patience", "resume",
    "max_batch_size", "reuse",
)  # fmt: skip
"""Keys of a sweeper that may change when a sweep is gone on with."""


@dataclass(frozen=True)
class Sweep:
    """What the parts of a sweep need of each other."""

    folder: SweepFolder
    space: Space
    objectives: Sequence[Objective]
    prune_on: Objective | None
    total: int | None


class HydraSweeper(Sweeper):
    """What both sweepers have in common. A config of any other application is left to Hydra's own sweeper.

    Args:
        n_jobs: trials at once.
        params: what varies beside what is typed; see `space.read_space`.
        objectives: `{metric: ..., direction: ...}` each; by default the task's validation metric.
        retries, trial_timeout_s, max_failures, time_budget_s, patience, reuse: see `Rules`.
        resume: `auto` goes on with the newest sweep of the same command that was not finished; `never` does not; or a
            sweep's folder.
        max_batch_size: of Hydra's own sweeper.
    """

    def __init__(
        self,
        n_jobs: int = 1,
        params: Mapping[str, Any] | None = None,
        objectives: Sequence[Mapping[str, str]] | None = None,
        retries: int = 1,
        trial_timeout_s: float | None = None,
        max_failures: int | None = None,
        time_budget_s: float | None = None,
        patience: int | None = None,
        reuse: bool = True,
        resume: str = "auto",
        max_batch_size: int | None = None,
    ) -> None:
        self._batch = max_batch_size
        self.n_jobs, self.space_in_yaml = n_jobs, as_plain(params or {})
        self.objectives, self.resume = as_plain(objectives or []), resume
        self.rules = Rules(retries, trial_timeout_s, max_failures, time_budget_s, patience, reuse)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        node = config.get("trainer")
        self.ours = OmegaConf.is_config(node) and OmegaConf.get_type(node) is TrainerConfig
        self.hydra_context, self.config = hydra_context, config
        if self.ours:
            self.launcher = Plugins.instance().instantiate_launcher(hydra_context, run_named_job, config)
        else:
            from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

            self._of_hydra = BasicSweeper(self._batch)
            self._of_hydra.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    @abstractmethod
    def search(self, sweep: Sweep) -> Search:
        """Return where points come from."""

    @abstractmethod
    def points_to_check(self, space: Space) -> Sequence[Mapping[str, Any]]:
        """Return the points to be checked before anything starts."""

    @abstractmethod
    def total(self, space: Space) -> int | None:
        """Return how many trials there will be, where that is known."""

    seed = 0
    constraints: Sequence[Constraint] = ()
    lists_points = False
    """Whether all points are known before any result is."""
    tolerant = False
    """Whether trials that fail are all in a day's work."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep.

        Raises:
            UserError: what the user can mend.
            Ended: when trials failed.
        """
        if not self.ours:
            return self._of_hydra.sweep(arguments)
        assert self.config is not None and self.hydra_context is not None
        loader = self.hydra_context.config_loader
        if self.config.run_dir:
            raise UserError("run_dir: is of one run; each trial of a sweep has its own")
        if (cluster := self._cluster()) is not None:
            assume_nodes(cluster.nodes, cluster.gpus_per_node)
            arguments = [*arguments, f"strategy.num_nodes={cluster.nodes}"]
        space = read_space(arguments, self.space_in_yaml, self._given(), loader, self.seed)
        objectives, prune_on = self._aims(space)
        folder = self._folder()
        plan = ComposedPlan(loader, self.config, space, folder)
        if self.config.check.lower() == "shapes":
            raise UserError("check: `shapes` is of one experiment; leave out -m")
        points = self.points_to_check(space)
        plan.check(points)
        if self.config.check.lower() == "true":
            print(f"{len(points)} points of the sweep are sound")
            return None
        sweep = Sweep(SweepFolder(folder), space, objectives, prune_on, self.total(space))
        return self._run(sweep, plan)

    def _run(self, sweep: Sweep, plan: ComposedPlan) -> int:
        assert self.hydra_context is not None
        loader, folder = self.hydra_context.config_loader, sweep.folder
        again = bool(folder.described())
        begin = {"status": "running", "command": shlex.join(["python", *sys.argv]), "fingerprint": self._fingerprint()}
        folder.describe(**begin, objectives=[{"metric": o.metric, "direction": o.direction} for o in sweep.objectives])
        OmegaConf.save(self.config, folder.path / "multirun.yaml")
        start_logging(folder.path / "log.txt")
        assert self.config is not None
        backend = self._backend(sweep)
        try:
            say(f"sweep: {folder.path}{', going on' if again else ''}")
            controller = Controller(
                folder,
                self.search(sweep),
                backend,
                plan,
                sweep.objectives,
                sweep.prune_on,
                self.rules,
                self.constraints,
                self._notes(),
            )
            if (cluster := self._cluster()) is not None and (self.config.dry_run or not cluster.wait):
                return self._let_go(sweep, controller)

            def write(status: str = "running", everything: bool = False) -> None:
                self._write(sweep, controller, status, plan, everything)

            try:
                with SweepWatcher(controller, sweep.total, write) as watcher:
                    controller.run(watcher)
            except BaseException as error:
                write("stopped", True)
                say(f"{explain_end(controller)}; the same command goes on")
                if isinstance(error, Preempted):
                    raise Ended(EXIT_PREEMPTED) from error
                raise
            write("running" if controller.count(State.open) else "completed", True)
            self._say_summary(sweep, controller, folder, loader)
        finally:
            backend.close()
            stop_logging()
        return self._code(controller)

    def _code(self, controller: Controller) -> int:
        failed, completed = controller.count(State.failed), controller.count(State.completed)
        limit = self.rules.max_failures
        if failed and (not self.tolerant or not completed or (limit is not None and failed >= limit)):
            print(f"error: {failed} of {len(controller.trials)} trials failed", file=sys.stderr)
            raise Ended(EXIT_USER if controller.only_mistakes else EXIT_FAILED)
        return completed

    def _cluster(self) -> ClusterLauncher | None:
        return self.launcher if isinstance(self.launcher, ClusterLauncher) else None

    def _notes(self) -> dict[str, Any]:
        """Return what is written down of every job, so that `jobs` can look after it."""
        assert self.config is not None
        if (cluster := self._cluster()) is None:
            return {}
        node = as_plain(self.config.hydra.launcher)
        return {"title": self.config.name, "launcher": node, "where": cluster.where()}

    def _let_go(self, sweep: Sweep, controller: Controller) -> int:
        """Submit all trials as one array, or write what would be submitted, and leave them to the cluster."""
        assert self.config is not None
        if not self.lists_points:
            raise UserError("hydra.launcher.wait: a search needs somebody who tells it what came out; leave it at true")
        jobs, path = controller.write_all(), sweep.folder.path
        assert isinstance(self.launcher, ClusterLauncher)
        cluster = self.launcher.backend(self.n_jobs, Path(self.config.outputs).resolve())
        if self.config.dry_run:
            print(f"script  {cluster.write(jobs, path / 'jobs', self.n_jobs)}  (not submitted: dry_run)")
        else:
            cluster.submit_all(jobs, path / "jobs", self.n_jobs)
            print(f"{len(jobs)} trials submitted, {self.n_jobs} at once; python -m framework jobs status {path}")
            print("the same command without hydra.launcher.wait=false collects what came of them")
        return len(jobs)

    def _backend(self, sweep: Sweep) -> Backend:
        assert self.launcher is not None and self.config is not None
        if isinstance(self.launcher, LocalLauncher):
            return self.launcher.backend(self.n_jobs)
        if isinstance(self.launcher, ClusterLauncher):
            self.launcher.require_fit(self.config)
            backend = self.launcher.backend(self.n_jobs, Path(self.config.outputs).resolve(), retries=0)
            backend.check(self.config.name, sweep.folder.path)
            if sweep.total is not None:
                print(f"cost    at most {self.launcher.cost(sweep.total)}")
            return backend
        return LauncherBackend(self.launcher, self.n_jobs)

    def _given(self) -> dict[str, str]:
        """Return the values of keys that conditions name, as they are where they do not vary."""
        assert self.config is not None
        conditions = [node.get("when") or {} for node in self.space_in_yaml.values() if isinstance(node, Mapping)]
        choices, given = self.config.hydra.runtime.choices, {}
        for key in dict.fromkeys(key for condition in conditions for key in condition):
            value = choices[key] if key in choices else OmegaConf.select(self.config, key)
            if value is not None:
                given[key] = str(value)
        return given

    def _aims(self, space: Space) -> tuple[list[Objective], Objective | None]:
        """Return the objectives, and by what trials may be pruned."""
        assert self.config is not None
        where = "hydra.sweeper.objectives"
        monitored = self._monitored()
        objectives = [read_objective(node, f"{where}[{i}]") for i, node in enumerate(self.objectives)] or [monitored]
        stages = [stage.value for stage in self.config.stages]
        for objective in objectives:
            made_by = _MADE_BY.get(objective.metric.partition("/")[0])
            if made_by is not None and made_by not in stages and not self.config.from_run:
                raise UserError(
                    f"{where}: `{objective.metric}` is found by the stage `{made_by}`, which is not in stages"
                )
        same = [o for o in objectives if o.metric == monitored.metric]
        return objectives, (same or [monitored])[0]

    def _monitored(self) -> Objective:
        """Return the metric by which the task compares checkpoints, on the validation split."""
        assert self.config is not None
        task = self.config.task
        metric, mode = (task.get(name, default_of(task["_target_"], name)) for name in ("monitor", "mode"))
        if metric is None or mode is None:
            raise UserError("hydra.sweeper.objectives: give some; the task does not say by which metric it is judged")
        return Objective(f"val/{metric}", mode == "max")

    def _folder(self) -> Path:
        """Return where the sweep lies: the one that is gone on with, or a new one.

        Raises:
            UserError: when the folder that was named holds another sweep, or none.
        """
        assert self.config is not None
        new, fingerprint = Path(str(self.config.hydra.sweep.dir)).resolve(), self._fingerprint()
        if self.resume not in ("auto", "never"):
            new = Path(self.resume).resolve()
            if not SweepFolder.holds_sweep(new):
                raise UserError(f"hydra.sweeper.resume: there is no sweep in `{self.resume}`")
        if SweepFolder.holds_sweep(new):
            if SweepFolder(new).described().get("fingerprint") != fingerprint:
                raise UserError(f"`{new}` holds another sweep: the command, or a config file, was changed since")
            return new
        if self.resume == "auto" and new.parent.is_dir():
            for file in sorted(new.parent.glob("*/study.json"), key=lambda f: f.stat().st_mtime, reverse=True):
                folder = SweepFolder(file.parent)
                found = folder.described()
                unfinished = found.get("fingerprint") == fingerprint and found.get("status") != "completed"
                if unfinished and not folder.controllers():
                    return file.parent
        return new

    def _fingerprint(self) -> str:
        """Return a name of all that makes a sweep what it is."""
        assert self.config is not None
        master = self.config.copy()
        with open_dict(master):
            own = master.pop("hydra")
        sweeper = {k: v for k, v in as_plain(own.sweeper).items() if k not in _HOW_NOT_WHAT}
        typed = sorted(own.overrides.task)
        text = json.dumps([typed, sweeper, OmegaConf.to_yaml(master)], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _write(self, sweep: Sweep, controller: Controller, status: str, plan: ComposedPlan, everything: bool) -> None:
        assert self.hydra_context is not None and self.config is not None
        best = [controller.trials[number] for number in controller.best]
        sweep.folder.describe(
            status=status,
            counts={str(state): controller.count(state) for state in State},
            best=[
                {"number": t.number, "objectives": list(t.objectives), "values": dict(t.values), "run": t.run}
                for t in best[:20]
            ],
            stopped_because=controller.enough,
        )
        if everything:
            with sweep.folder.lock():
                write_tables(sweep.folder.path, trial_rows(list(controller.trials.values()), sweep.objectives))
                if best:
                    typed = {t.number: plan.overrides(t.values) for t in best}
                    loader, base = self.hydra_context.config_loader, self.config.hydra.runtime.choices.get("recipe")
                    self._again = write_best(sweep.folder.path, best, typed, loader, base)
                write_report(sweep.folder.path, list(controller.trials.values()), sweep.objectives, sweep.space, best)

    def _say_summary(self, sweep: Sweep, controller: Controller, folder: SweepFolder, loader: Any) -> None:
        trials = list(controller.trials.values())
        busy = sum(t.seconds for t in trials)
        say(f"\n{explain_end(controller)}; {duration_text(busy)} of work")
        for number in controller.best[:5]:
            trial = controller.trials[number]
            found = ", ".join(f"{o.metric} {v:.6g}" for o, v in zip(sweep.objectives, trial.objectives, strict=True))
            say(f"best    trial {number}: {found}  ({values_text(trial.values)})")
        if controller.best:
            say(f"again   python run.py --config-dir {folder.path} {self._again}")
        say(f"sweep   {folder.path}")
        say(f"report  {folder.path / 'report.html'}")


_MADE_BY = {
    "train": "train", "val": "train", "model": "train", "test": "evaluate", "compress": "compress",
    "compressed": "export", "export": "export", "eager": "export",
}  # fmt: skip
"""Which stage finds metrics that begin so."""
