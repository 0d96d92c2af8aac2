"""Optuna as a `Search`: any sampler, any pruner, any storage; one study that several processes may work on."""

from __future__ import annotations

import math
import os
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from framework.config.components import as_plain, build
from framework.config.definitions import TargetNotFound
from framework.config.signatures import read_signature
from framework.errors import UserError
from framework.record.console import say

from .objectives import Objective
from .search import Ending, State, Suggestion
from .space import Choice, Interval, Space, Value
from .storage import JOURNAL, open_storage

_JOB, _IMPORTED = "job", "imported"
_BEYOND = 1e12
"""What a bound counts as broken by whose metric is missing; a storage takes nothing infinite."""
_SEEDED_ONCE = ("GridSampler", "QMCSampler", "BruteForceSampler")
"""Samplers that find in the storage how far they came, and count on the same seed for that."""


class OptunaSearch:
    """Asks an Optuna study.

    Args:
        space: what is varied.
        objectives: what for.
        folder: the sweep's; the study's journal lies there by default.
        n_trials: how many there are to be, in all; None has no end.
        sampler, pruner: their config nodes; without, TPE and none.
        prune_on: what reported values are of.
        storage: a URL (`sqlite:///`, `postgresql://`, `grpc://host:port`), or a journal's path.
        study_name: by default the folder's.
        seed: of the sampler, unless its node has one.
        constrained: whether there are bounds that good points keep.

    Raises:
        UserError: when something of it cannot be had.
    """

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        folder: Path,
        n_trials: int | None = None,
        sampler: Any = None,
        pruner: Any = None,
        prune_on: Objective | None = None,
        storage: str | None = None,
        study_name: str | None = None,
        seed: int = 0,
        constrained: bool = False,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self._space, self._folder, self._n_trials, self._constrained = space, folder, n_trials, constrained
        kept = open_storage(storage or str(folder / JOURNAL))
        name = study_name or folder.name
        directions = [o.optuna_direction for o in objectives]
        try:
            study = optuna.create_study(study_name=name, storage=kept, directions=directions, load_if_exists=True)
        except ValueError as error:
            raise UserError(f"hydra.sweeper.study_name: `{name}` in that storage is of another kind: {error}") from None
        if study.directions != directions:
            raise UserError(f"hydra.sweeper.objectives: the study `{name}` has other ones")
        self._asked: dict[int, optuna.Trial] = {}
        self._looked_at = self._counted = 0
        begun = len(study.get_trials(deepcopy=False))
        self._study = _AskedStudy(
            study_name=name,
            storage=kept,
            sampler=self._sampler(sampler or {"_target_": "optuna.samplers.TPESampler"}, seed, begun),
            pruner=optuna.pruners.NopPruner(),
        )
        self._pruner: BasePruner | None = build(pruner, "hydra.sweeper.pruner") if pruner else None
        self._judged: Study = self._study
        if self._pruner is not None and prune_on is not None:
            if list(objectives) == [prune_on]:
                self._study.pruner = self._pruner
            else:
                self._judged = _OneObjective(self._study, self._pruner, prune_on)

    def _sampler(self, node: Any, seed: int, begun: int) -> BaseSampler:
        plain = as_plain(node)
        target = plain["_target_"].rpartition(".")[2]
        again = begun and target not in _SEEDED_ONCE  # another stream, or what was drawn would be drawn again
        _seed(plain, zlib.crc32(f"{seed} {begun} {os.getpid()}".encode()) if again else seed)
        if target == "GridSampler" and "search_space" not in plain:
            plain["search_space"] = {d.name: list(d.points) for d in self._space.dimensions if d.points is not None}
            if any(isinstance(d.domain, Interval) for d in self._space.dimensions):
                raise UserError(
                    "hydra.sweeper.sampler: GridSampler takes choices only; hydra/sweeper=grid takes ranges"
                )
        if self._constrained and "constraints_func" not in _arguments(plain["_target_"]):
            say(f"warning: {target} does not look at constraints; they only decide which trials may be the best")
        return build(plain, "hydra.sweeper.sampler")

    def ask(self) -> Suggestion | None:
        if self._study.exhausted or (self._n_trials is not None and self._begun() >= self._n_trials):
            return None
        return self._suggest(self._study.ask())

    def _begun(self) -> int:
        """Return how many trials were begun, by anybody; those before the first that waits are looked at once."""
        trials = self._study.get_trials(deepcopy=False)
        while self._looked_at < len(trials) and trials[self._looked_at].state is not TrialState.WAITING:
            self._counted += _IMPORTED not in trials[self._looked_at].user_attrs
            self._looked_at += 1
        rest = trials[self._looked_at :]
        return self._counted + sum(t.state is not TrialState.WAITING and _IMPORTED not in t.user_attrs for t in rest)

    def _suggest(self, trial: optuna.Trial) -> Suggestion:
        self._asked[trial.number] = trial
        values: dict[str, Value] = {}
        for dimension in self._space.dimensions:
            if self._space.has(dimension, values):
                name, domain = dimension.name, dimension.domain
                if isinstance(domain, Choice):
                    values[name] = trial.suggest_categorical(name, domain.values)
                elif domain.whole:
                    low, high, step = int(domain.low), int(domain.high), int(domain.step or 1)
                    values[name] = trial.suggest_int(name, low, high, step=step, log=domain.log)
                else:
                    values[name] = trial.suggest_float(name, domain.low, domain.high, step=domain.step, log=domain.log)
        trial.set_user_attr(_JOB, str(self._folder))
        return Suggestion(trial.number, values)

    def report(self, number: int, index: int, value: float) -> str | None:
        if not math.isfinite(value):
            return None
        trial_id = self._id(number)
        self._study._storage.set_trial_intermediate_value(trial_id, index, value)
        trial = self._study._storage.get_trial(trial_id)
        if self._pruner is not None and self._pruner.prune(self._judged, trial):
            return f"{type(self._pruner).__name__}: {value:.6g} at validation {index} is not good enough"
        return None

    def tell(self, number: int, ending: Ending) -> None:
        trial_id = self._id(number)
        if ending.state is State.open or self._study._storage.get_trial(trial_id).state.is_finished():
            return
        for name, note in ending.notes.items():
            self._study._storage.set_trial_user_attr(trial_id, name, note)
        for name, violation in ending.violations.items():
            self._trial(number).set_constraint(name, min(violation, _BEYOND))
        completed = ending.state is State.completed
        states = {State.completed: TrialState.COMPLETE, State.pruned: TrialState.PRUNED, State.failed: TrialState.FAIL}
        trial = self._asked.pop(number, number)
        self._study.tell(trial, list(ending.values) if completed else None, state=states[ending.state])

    def untold(self) -> list[Suggestion]:
        """Return this folder's; and those that a process which died left half suggested, where nobody else works."""
        found = []
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state.name != "RUNNING":
                continue
            if trial.user_attrs.get(_JOB) == str(self._folder):
                found.append(Suggestion(trial.number, dict(trial.params)))
            elif _JOB not in trial.user_attrs and self._is_ours:
                found.append(self._suggest(optuna.trial.Trial(self._study, trial._trial_id)))
        return found

    @property
    def _is_ours(self) -> bool:
        return (self._folder / JOURNAL).exists()

    def enqueue(self, point: Mapping[str, Value]) -> None:
        """Have a point tried before any other, unless it was suggested before."""
        self._study.enqueue_trial(dict(point), skip_if_exists=True)

    def import_study(self, storage: str, name: str | None) -> tuple[int, int]:
        """Learn from another study's finished trials; returns how many were taken, and how many do not fit.

        Raises:
            UserError: when there is no such study.
        """
        names = optuna.get_all_study_names(kept := open_storage(storage))
        if name is None and len(names) == 1:
            name = names[0]
        if name not in names:
            raise UserError(f"hydra.sweeper.import_study: no study `{name}` in `{storage}`; it has {', '.join(names)}")
        before = {t.user_attrs.get(_IMPORTED) for t in self._study.get_trials(deepcopy=False)}
        fits = odd = 0
        for trial in optuna.load_study(study_name=name, storage=kept).get_trials(deepcopy=False):
            if trial.state.name != "COMPLETE" or f"{name} {trial.number}" in before:
                continue
            taken = self._translate(trial, f"{name} {trial.number}")
            if taken is None:
                odd += 1
            else:
                fits += 1
                self._study.add_trial(taken)
        return fits, odd

    def _translate(self, trial: FrozenTrial, origin: str) -> FrozenTrial | None:
        values: dict[str, Value] = {}
        for dimension in self._space.dimensions:
            if self._space.has(dimension, values):
                try:
                    values[dimension.name] = dimension.domain.parse(trial.params.get(dimension.name))
                except ValueError:
                    return None
        if len(trial.values) != len(self._study.directions):
            return None
        distributions = {d.name: distribution(d.domain) for d in self._space.dimensions if d.name in values}
        taken = optuna.trial.create_trial(
            values=trial.values, params=values, distributions=distributions, user_attrs={_IMPORTED: origin}
        )
        for name, violation in trial.constraints.items():
            taken.set_constraint(name, violation)
        return taken

    def _trial(self, number: int) -> optuna.Trial:
        """Return a trial that was asked for, by this process or an earlier one."""
        if number not in self._asked:
            self._asked[number] = optuna.trial.Trial(self._study, self._id(number))
        return self._asked[number]

    def _id(self, number: int) -> int:
        if number in self._asked:
            return self._asked[number]._trial_id
        return self._study._storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)


def distribution(domain: Choice | Interval) -> BaseDistribution:
    """Return a domain as Optuna knows it."""
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.values)
    if domain.whole:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log, step=int(domain.step or 1))
    return FloatDistribution(domain.low, domain.high, log=domain.log, step=domain.step)


def _arguments(target: str) -> list[str]:
    try:
        return [p.name for p in read_signature(target).parameters]
    except (TargetNotFound, SyntaxError, OSError):
        return []


def _seed(node: Any, seed: int) -> None:
    """Give every component within a node that takes a seed, and has none, this one."""
    if isinstance(node, dict):
        if "_target_" in node and "seed" not in node and "seed" in _arguments(node["_target_"]):
            node["seed"] = seed
        for value in node.values():
            _seed(value, seed)


class _AskedStudy(Study):
    """A study that is asked and told from outside; samplers that have tried all they know say so by `stop`."""

    exhausted = False

    def stop(self) -> None:
        self.exhausted = True


class _OneObjective(Study):
    """A study as pruners must see it that judge by something else than its objectives.

    Args:
        study: the study.
        pruner: who looks.
        objective: by what.
    """

    def __init__(self, study: Study, pruner: BasePruner, objective: Objective) -> None:
        super().__init__(study.study_name, study._storage, sampler=study.sampler, pruner=pruner)
        self._directions = [objective.optuna_direction]

    @property
    def best_trial(self) -> FrozenTrial:
        """The one that is best at its last report."""
        done = [t for t in self.get_trials(deepcopy=False) if t.state.name == "COMPLETE" and t.intermediate_values]
        if not done:
            raise ValueError("no trial is completed yet")
        sign = 1 if self._directions[0] is StudyDirection.MAXIMIZE else -1
        return max(done, key=lambda t: sign * t.intermediate_values[max(t.intermediate_values)])
