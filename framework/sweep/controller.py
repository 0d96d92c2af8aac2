"""Keeps every slot of a backend busy with the trials of a search, until there is nothing more to try.

There is no barrier: a slot that falls free gets the next point at once, told of everything known by then. What is
known lies in the sweep's folder and in the search's storage; another controller goes on where this one dies.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf

from framework.errors import EXIT_FAILED, EXIT_USER, Preempted, UserError
from framework.launch.backend import Backend, Phase
from framework.launch.jobs import Job, Result, Status
from framework.record.interrupts import INTERRUPTS

from .objectives import Constraint, Objective, best_of
from .reuse import continue_from, is_same, training_key
from .search import Ending, Search, State, Suggestion
from .space import Value
from .trials import SweepFolder, Trial

POLL_S = 0.1
_SCAN_EVERY_S, _STOP_GRACE_S = 5.0, 60.0


@dataclass(frozen=True)
class Rules:
    """When a trial, and when the sweep, has had enough.

    Args:
        retries: how often a trial is begun again whose machine failed it.
        trial_timeout_s: a trial that takes longer is killed, and failed.
        max_failures: so many failed trials end the sweep.
        time_budget_s: after so long no trial is begun; those that run may end.
        patience: after so many completed trials without a better one no trial is begun.
        reuse: trials share trainings.
    """

    retries: int = 1
    trial_timeout_s: float | None = None
    max_failures: int | None = None
    time_budget_s: float | None = None
    patience: int | None = None
    reuse: bool = True


class Plan(Protocol):
    """Knows what a point means."""

    def overrides(self, values: Mapping[str, Value]) -> list[str]:
        """Return what would be typed."""

    def config(self, number: int, values: Mapping[str, Value]) -> DictConfig:
        """Return the config of a trial; raises UserError when it is not sound."""


class Watcher(Protocol):
    """Shows how it goes."""

    def began(self, trial: Trial) -> None:
        """A trial was started."""

    def ended(self, trial: Trial) -> None:
        """A trial is over."""

    def look(self) -> None:
        """Called some times a second."""

    def remark(self, text: str) -> None:
        """Something worth a line."""


class Controller:
    """Works on a sweep.

    Args:
        sweep: its folder.
        search: suggests points.
        backend: runs jobs.
        plan: makes configs of points.
        objectives: by which trials are judged.
        prune_on: the metric and direction of which reports are handed to the search; None where nothing is pruned.
        rules: see `Rules`.
        constraints: bounds that the best trials keep.
        notes: for every job.
    """

    def __init__(
        self,
        sweep: SweepFolder,
        search: Search,
        backend: Backend,
        plan: Plan,
        objectives: Sequence[Objective],
        prune_on: Objective | None = None,
        rules: Rules = Rules(),
        constraints: Sequence[Constraint] = (),
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        self.sweep, self.search, self.backend, self.plan = sweep, search, backend, plan
        self.objectives, self.prune_on, self.rules, self.constraints = objectives, prune_on, rules, constraints
        self.notes = dict(notes or {})
        self.trials: dict[int, Trial] = {}
        self.running: dict[int, Trial] = {}
        self.waiting: list[Trial] = []
        self.enough: str | None = None
        self._trained: dict[str, int] = {}
        self._values: dict[int, tuple[float, ...]] = {}
        self._ended: Counter[State] = Counter()
        self._best: list[int] = []
        self._since_better = 0
        self._exhausted = False
        self._asked: dict[int, float] = {}
        self._name = ""

    @property
    def best(self) -> list[int]:
        """The numbers of the best trials: one, or with several objectives those that none dominates."""
        return self._best

    def count(self, state: State) -> int:
        """Return how many trials ended so; those that did not are `open`."""
        ended = sum(self._ended.values())
        return len(self.trials) - ended if state is State.open else self._ended[state]

    @property
    def only_mistakes(self) -> bool:
        """Whether all that failed is the user's to mend."""
        return all(trial.mistaken for trial in self.trials.values() if trial.state is State.failed)

    def run(self, watcher: Watcher) -> None:
        """Work until there is nothing more to do; `enough` says why, where it is not that all was tried.

        Raises:
            Preempted: stopped by a signal; trials that ran were stopped, and will be gone on with.
            UserError: when it makes no sense to go on.
        """
        self._watcher = watcher
        self._began = time.monotonic()
        with self.sweep.controller() as self._name, INTERRUPTS, INTERRUPTS.deferred():
            try:
                self._scan()
                scanned = time.monotonic()
                while True:
                    self._fill()
                    if INTERRUPTS.requested:
                        self._cancel()
                        raise Preempted(f"stopped by {INTERRUPTS.requested}")
                    if not self.running:
                        break
                    self.backend.wait(POLL_S)
                    self._look()
                    watcher.look()
                    if time.monotonic() - scanned > _SCAN_EVERY_S:
                        self._scan()
                        scanned = time.monotonic()
            except BaseException:
                for trial in self.running.values():
                    self.backend.kill(trial.the_job())
                raise

    def write_all(self) -> list[Job]:
        """Write down every point there is, for jobs that nobody watches; returns those whose job is not over."""
        with self.sweep.controller() as self._name, self.sweep.lock():
            while (suggestion := self.search.ask()) is not None:
                self._write_down(suggestion)
        return [trial.the_job() for trial in self.trials.values() if trial.state is State.open]

    # What runs next

    def _fill(self) -> None:
        held: list[Trial] = []
        while len(self.running) < self.backend.slots and not INTERRUPTS.requested:
            trial = self.waiting.pop(0) if self.waiting else self._next() if len(held) < self.backend.slots else None
            if trial is None:
                break
            if self._must_wait(trial):
                held.append(trial)
            elif trial.state is State.open and not self._take_over(trial):
                self._start(trial)
        self.waiting = [*held, *self.waiting]

    def _next(self) -> Trial | None:
        if self._exhausted or self._had_enough():
            return None
        with self.sweep.lock():
            suggestion = self.search.ask()
            if suggestion is None:
                self._exhausted = True
                return None
            return self._write_down(suggestion)

    def _had_enough(self) -> bool:
        rules, reason = self.rules, None
        if rules.time_budget_s is not None and time.monotonic() - self._began > rules.time_budget_s:
            reason = "the time budget is used up"
        elif rules.patience is not None and self._since_better >= rules.patience:
            reason = f"{self._since_better} trials brought nothing better"
        elif rules.max_failures is not None and self.count(State.failed) >= rules.max_failures:
            reason = f"{self.count(State.failed)} trials failed (hydra.sweeper.max_failures)"
        if reason and self.enough is None:
            self.enough = reason
            self._watcher.remark(f"no more trials are begun: {reason}")
        return self.enough is not None

    def _write_down(self, suggestion: Suggestion) -> Trial:
        """Make the job of a point; one that is not sound ends here."""
        number, values, error = suggestion.number, suggestion.values, None
        try:
            config = self.plan.config(number, values)
            training = training_key(config) if self.rules.reuse else None
        except UserError as unsound:
            config, training, error = OmegaConf.create({}), None, str(unsound)
        notes = {
            **self.notes,
            "number": number,
            "values": dict(values),
            "training": training,
            "run": config.get("run_dir"),
            "controller": self._name,
            "failures": 0,
        }
        folder = self.sweep.trial_folder(number)
        job = Job.create(folder, config, self.plan.overrides(values), notes)
        trial = Trial(number, values, folder, training, run=config.get("run_dir"), controller=self._name, job=job)
        self.trials[number] = trial
        if error is not None:
            now = time.time()
            job.write_result(Result(job.attempt, Status.mistaken, EXIT_USER, error, None, {}, now, now))
            self._judge(trial)
        return trial

    def _must_wait(self, trial: Trial) -> bool:
        """Return whether another trial that runs trains what this one needs."""
        return (
            trial.state is State.open
            and trial.training is not None
            and trial.training not in self._trained
            and any(other.training == trial.training for other in self.running.values())
        )

    def _take_over(self, trial: Trial) -> bool:
        """Have a trial use what another has trained; returns whether that leaves nothing to do."""
        other = self.trials.get(self._trained.get(trial.training or "", -1))
        if other is None or other is trial or trial.taken_from is not None:
            return False
        job, config = trial.the_job(), trial.the_job().config()
        theirs, result = other.the_job().config(), other.the_job().result()
        assert result is not None and result.run is not None
        trial.taken_from = other.number
        job.note(taken_from=other.number)
        if is_same(config, theirs):
            now = time.time()
            job.write_result(Result(job.attempt, Status.completed, 0, None, result.run, result.metrics, now, now))
            self._judge(trial)
            return True
        continue_from(config, result.run)
        job.change_config(config)
        return False

    def _start(self, trial: Trial) -> None:
        taken = {other.slot for other in self.running.values()}
        trial.slot = next(i for i in range(self.backend.slots) if i not in taken)
        trial.started = time.time()
        trial.the_job().note(slot=trial.slot, started=trial.started, controller=self._name)
        self.backend.submit(trial.the_job())
        self.running[trial.number] = trial
        self._watcher.began(trial)

    # What runs

    def _look(self) -> None:
        running = list(self.running.values())
        for trial, phase in zip(running, self.backend.phases([t.the_job() for t in running]), strict=True):
            self._read_reports(trial, phase is not Phase.gone)
            if phase is Phase.gone:
                self.running.pop(trial.number)
                self._asked.pop(trial.number, None)
                self._bury(trial)
                self._judge(trial)
            elif (asked := self._asked.get(trial.number)) is not None:
                if time.monotonic() - asked > _STOP_GRACE_S:
                    self.backend.kill(trial.the_job())
            elif self.rules.trial_timeout_s is not None and time.time() - trial.started > self.rules.trial_timeout_s:
                self._stop(trial, Status.failed, f"took longer than {self.rules.trial_timeout_s:g} s")
                self.backend.kill(trial.the_job())

    def _stop(self, trial: Trial, status: Status, reason: str) -> None:
        trial.the_job().ask_to_stop(status, reason)
        self._asked[trial.number] = time.monotonic()
        self.backend.stop(trial.the_job())

    def _read_reports(self, trial: Trial, may_stop: bool) -> None:
        reports, trial.reported = trial.the_job().reports(trial.reported)
        reason = None
        for step, metrics in reports:
            if step <= trial.last_step:  # said before, by an attempt that went on from a checkpoint
                continue
            trial.last_step, trial.latest = step, metrics
            trial.validations += 1
            if self.prune_on is not None and (value := metrics.get(self.prune_on.metric)) is not None:
                reason = self.search.report(trial.number, trial.validations, value)
        if reason and may_stop and trial.number not in self._asked:
            self._stop(trial, Status.pruned, reason)

    def _bury(self, trial: Trial) -> None:
        """Write the result of a job that could not do so itself."""
        job = trial.the_job()
        why = self.backend.why_gone(job)
        if job.result() is not None:
            return
        asked = job.asked_to_stop()
        status, reason = asked or (Status.failed, why or "ended without a word")
        job.write_result(Result(job.attempt, status, EXIT_FAILED, reason, trial.run, {}, trial.started, time.time()))

    # What came of it

    def _judge(self, trial: Trial) -> None:
        """Take what a job left behind: its trial is over, or is begun again."""
        job = trial.the_job()
        ending = self._ending(trial)
        if ending is not None:
            if ending.state is State.failed:
                job.note(given_up=True)
            self._finish(trial, ending)
            self._watcher.ended(trial)
        elif (result := job.result()) is not None and result.status is Status.failed:
            job.note(failures=job.notes["failures"] + 1)
            self._watcher.remark(f"trial {trial.number} is begun again: {result.error}")
            self._again(trial)
        elif not INTERRUPTS.requested:  # somebody else's signal: it goes on from its checkpoint
            self._again(trial)

    def _ending(self, trial: Trial) -> Ending | None:
        """Return what a job's result means for its trial; None where it is not over.

        Raises:
            UserError: when the first trial that is completed lacks the metric that is looked for.
        """
        job, result = trial.the_job(), trial.the_job().result()
        if result is None or result.status in (Status.cancelled, Status.preempted):
            return None
        trial.run, trial.started, trial.ended = result.run or trial.run, result.started, result.ended
        trial.mistaken = result.status is Status.mistaken
        state, values, error = State.failed, tuple[float, ...](), result.error
        if result.status is Status.completed:
            try:
                values = tuple(o.value(result.metrics) for o in self.objectives)
                state = State.completed
            except UserError as missing:
                if not self._values:
                    raise UserError(f"trial {trial.number}: {missing}") from None
                error = str(missing)
        elif result.status is Status.pruned:
            state = State.pruned
        else:
            told_to = job.asked_to_stop() is not None
            tried = job.notes["failures"] >= self.rules.retries or job.notes.get("given_up", False)
            if not (result.status is Status.mistaken or told_to or tried):
                return None
            if result.status is not Status.mistaken:
                error = "\n".join(filter(None, [result.error, job.last_lines()]))
        notes = {"run": trial.run, "error": error, "taken_from": trial.taken_from}
        over = state is not State.failed
        violations = {str(c): c.violation(result.metrics) for c in self.constraints} if over else {}
        return Ending(state, values, violations, {k: str(v) for k, v in notes.items() if v is not None})

    def _again(self, trial: Trial) -> None:
        trial.the_job().begin_again()
        self.waiting.append(trial)

    def _finish(self, trial: Trial, ending: Ending) -> None:
        self.search.tell(trial.number, ending)
        self._remember(trial, ending)

    def _remember(self, trial: Trial, ending: Ending) -> None:
        trial.state, trial.objectives, trial.error = ending.state, tuple(ending.values), ending.notes.get("error")
        trial.job = None
        self.trials[trial.number] = trial
        self._ended[trial.state] += 1
        if trial.state is not State.completed:
            return
        if trial.training is not None and trial.taken_from is None:
            self._trained.setdefault(trial.training, trial.number)
        self._values[trial.number] = trial.objectives
        trial.feasible = all(violation <= 0 for violation in ending.violations.values())
        if not trial.feasible:
            self._since_better += 1
            return
        known = {number: self._values[number] for number in self._best}
        best = best_of({**known, trial.number: trial.objectives}, self.objectives)
        self._since_better = 0 if trial.number in best else self._since_better + 1
        self._best = best

    # What others do, or have left

    def _scan(self) -> None:
        """Find trials of controllers that are gone, and go on with them; take note of what others have finished."""
        with self.sweep.lock():
            for number in self.sweep.numbers():
                known = self.trials.get(number)
                if known is not None and (known.state is not State.open or known.controller == self._name):
                    continue
                trial = self.sweep.load(number)
                alive, ending = self.sweep.is_alive(trial.controller), self._ending(trial)
                if ending is not None:
                    if not alive:
                        self.search.tell(number, ending)  # whoever ran it may have died before
                    self._remember(trial, ending)
                elif alive:
                    self.trials[number] = trial
                else:
                    self._adopt(trial)
            written = set(self.sweep.numbers())
            for suggestion in self.search.untold():
                if suggestion.number not in written:
                    self.waiting.append(self._write_down(suggestion))

    def _adopt(self, trial: Trial) -> None:
        trial.controller = self._name
        self.trials[trial.number] = trial
        job = trial.the_job()
        job.note(controller=self._name)
        if job.result() is None and self.backend.phases([job]) != [Phase.gone]:
            self.running[trial.number] = trial
            self._watcher.began(trial)
            return
        asked = job.asked_to_stop()
        if job.result() is None and asked is not None and asked[0] is Status.pruned:
            self._bury(trial)
        if job.result() is None:
            self._again(trial)
        else:
            self._judge(trial)

    # When it is to end

    def _cancel(self) -> None:
        """Stop the trials that run, so that they can be gone on with; a second Ctrl-C kills them."""
        if self.running:
            self._watcher.remark(f"stopping {len(self.running)} trials; Ctrl-C again kills them")
        for trial in self.running.values():
            if trial.number not in self._asked:
                self._stop(trial, Status.cancelled, "the sweep was stopped")
        while self.running:
            self.backend.wait(POLL_S)
            self._look()
            self._watcher.look()


def explain_end(controller: Controller) -> str:
    """Return one line on how many trials ended how."""
    counted = [f"{controller.count(state)} {state}" for state in State if controller.count(state)]
    return f"{len(controller.trials)} trials: {', '.join(counted)}" if counted else "no trials"
