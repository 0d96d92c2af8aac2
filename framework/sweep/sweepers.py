"""The sweepers that `-m` starts: every combination (`hydra/sweeper=grid`), or Optuna (`hydra/sweeper=optuna`)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from hydra.core.plugins import Plugins

from framework.config.components import as_plain
from framework.errors import UserError
from framework.launch.cluster import KubernetesLauncher, SlurmLauncher
from framework.launch.hydra_launcher import LocalLauncher
from framework.record.console import say

from .objectives import Objective, read_constraint, read_objective
from .search import GridSearch, Search
from .space import Space
from .sweeper import HydraSweeper, Sweep

_CHECKED_AT_MOST = 200


class GridSweeper(HydraSweeper):
    """Every combination of the values given: `-m optimizer.lr=1e-3,1e-2 model=cnn,vit`."""

    lists_points = True

    def search(self, sweep: Sweep) -> Search:
        """Return every combination."""
        return GridSearch(sweep.space, sweep.folder.has)

    def points_to_check(self, space: Space) -> Sequence[Mapping[str, Any]]:
        """Return all points, or, where there are very many, a few in which every value occurs."""
        points = list(space.grid())
        return points if len(points) <= _CHECKED_AT_MOST else space.samples()

    def total(self, space: Space) -> int | None:
        """Return how many combinations there are."""
        return sum(1 for _ in space.grid())


class OptunaSweeper(HydraSweeper):
    """Points that Optuna suggests; trials that do badly are pruned.

    Args:
        n_trials: how many, in all; null goes on until the time budget, or patience, is used up.
        sampler, pruner: nodes with a `_target_` each; without `seed`, the sampler has that of the sweeper.
        prune_on: `{metric: ..., direction: ...}`; by default the objective, where it is a validation metric, else the
            task's validation metric.
        storage: a URL, or a journal's path; by default a journal in the sweep's folder.
        study_name: by default the folder's name.
        seed: of the sampler.
        constraints: `METRIC <= NUMBER`.
        enqueue: points to try first.
        import_study: a sweep's folder, a storage, or `{storage: ..., study_name: ...}`, to learn from.
        **others: see `GridSweeper`.
    """

    tolerant = True

    def __init__(
        self,
        n_trials: int | None = 50,
        sampler: Any = None,
        pruner: Any = None,
        prune_on: Any = None,
        storage: str | None = None,
        study_name: str | None = None,
        seed: int = 0,
        constraints: Sequence[str] = (),
        enqueue: Sequence[Mapping[str, Any]] = (),
        import_study: Any = None,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.n_trials, self.sampler, self.pruner, self.seed = n_trials, as_plain(sampler), as_plain(pruner), seed
        self.prune_on = read_objective(as_plain(prune_on), "hydra.sweeper.prune_on") if prune_on else None
        self.storage, self.study_name, self.import_study = storage, study_name, as_plain(import_study)
        self.enqueue = as_plain(enqueue)
        self.constraints = [read_constraint(c, f"hydra.sweeper.constraints[{i}]") for i, c in enumerate(constraints)]
        if n_trials is None and self.rules.time_budget_s is None and self.rules.patience is None:
            raise UserError("hydra.sweeper: give n_trials, time_budget_s or patience, or it never ends")

    def _aims(self, space: Space) -> tuple[list[Objective], Objective | None]:
        objectives, prune_on = super()._aims(space)
        if not space.dimensions:
            raise UserError("nothing is varied: type a sweep, as in 'optimizer.lr=interval(1e-4,1e-1)', or give params")
        self._first = [space.parse(point, f"hydra.sweeper.enqueue[{i}]") for i, point in enumerate(self.enqueue)]
        return objectives, (self.prune_on or prune_on) if self.pruner else None

    def search(self, sweep: Sweep) -> Search:
        """Return a study of Optuna's."""
        from .optuna_search import OptunaSearch
        from .storage import JOURNAL, mend_journal

        path = sweep.folder.path
        with sweep.folder.lock():
            if not sweep.folder.controllers() and mend_journal(path / JOURNAL):
                say("a half-written line was cut off the journal")
            study = OptunaSearch(
                sweep.space, sweep.objectives, path, self.n_trials, self.sampler, self.pruner, sweep.prune_on,
                self.storage, self.study_name, self.seed, bool(self.constraints),
            )  # fmt: skip
            for point in self._first:
                study.enqueue(point)
            if self.import_study:
                node = self.import_study if isinstance(self.import_study, Mapping) else {"storage": self.import_study}
                fits, odd = study.import_study(str(node["storage"]), node.get("study_name"))
                say(f"{fits} trials were imported{f'; {odd} do not fit' if odd else ''}")
        return study

    def points_to_check(self, space: Space) -> Sequence[Mapping[str, Any]]:
        """Return a few points in which every choice and both ends of every interval occur."""
        return space.samples()

    def total(self, space: Space) -> int | None:
        """Return how many trials were asked for."""
        return self.n_trials


def register_sweepers() -> None:
    """Make Hydra know the plugins; it takes them only from modules below `hydra_plugins`, so they are shown there."""
    try:
        package = import_module("hydra_plugins")
    except ImportError:
        package = sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
        package.__path__ = []
    module = ModuleType("hydra_plugins.framework")
    sys.modules[module.__name__] = module
    vars(package)["framework"] = module
    for plugin in (GridSweeper, OptunaSweeper, LocalLauncher, SlurmLauncher, KubernetesLauncher):
        vars(module)[plugin.__name__] = plugin
        plugin.__module__ = module.__name__
        Plugins.instance().register(plugin)
