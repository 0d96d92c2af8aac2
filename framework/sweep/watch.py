"""What a person sees of a sweep: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from framework.record.console import LOGGER, duration_text, on_terminal, say

from .controller import Controller
from .search import State
from .space import Value
from .trials import Trial

_LINES_EVERY_S = 30.0
_WORDS = {State.completed: "done", State.pruned: "pruned", State.failed: "failed"}


class SweepWatcher:
    """Shows how a sweep goes; see `Watcher`.

    Args:
        controller: whose.
        total: how many trials there will be, where that is known.
        write: called after a trial ended, to keep files up to date.
    """

    def __init__(self, controller: Controller, total: int | None, write: Callable[[], None]) -> None:
        self._controller, self._total, self._write = controller, total, write
        self._began = self._said = time.monotonic()
        self._before: int | None = None
        self._live: Any = None

    def __enter__(self) -> SweepWatcher:
        if on_terminal():
            from rich.live import Live

            self._live = Live(refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def began(self, trial: Trial) -> None:
        """Say what runs."""
        if self._before is None:
            self._before = sum(self._controller.count(s) for s in _WORDS)
        taken = f", with the training of trial {trial.taken_from}" if trial.taken_from is not None else ""
        self.remark(f"trial {trial.number}: {values_text(trial.values) or 'as it is'}{taken}")

    def ended(self, trial: Trial) -> None:
        """Say what came of it."""
        text = f"trial {trial.number} {_WORDS[trial.state]} in {duration_text(trial.seconds)}"
        if trial.state is State.completed:
            text += f": {self._judged(trial)}{' (best so far)' if trial.number in self._controller.best else ''}"
            if trial.taken_from is not None and trial.seconds == 0:
                text += f", as trial {trial.taken_from}"
        elif trial.error:
            text += f": {trial.error}"
        self.remark(text)
        self._write()

    def remark(self, text: str) -> None:
        """Show a line."""
        if self._live is None:
            say(text)
        else:
            self._live.console.print(text, markup=False, highlight=False)
            LOGGER.log(logging.INFO, text, extra={"file_only": True})

    def look(self) -> None:
        """Show where it stands."""
        if self._live is not None:
            self._live.update(self._table())
        elif time.monotonic() - self._said > _LINES_EVERY_S:
            self._said = time.monotonic()
            say(f"  {self._counts()}")

    def _judged(self, trial: Trial) -> str:
        pairs = zip(self._controller.objectives, trial.objectives, strict=False)
        return ", ".join(f"{o.metric} {value:.6g}" for o, value in pairs)

    def _counts(self) -> str:
        controller = self._controller
        ended = sum(controller.count(s) for s in _WORDS)
        parts = [f"{len(controller.running)} running"]
        parts += [f"{controller.count(s)} {word}" for s, word in _WORDS.items() if controller.count(s)]
        text = f"{ended}/{self._total}: " if self._total else ""
        text += ", ".join(parts)
        if controller.best:
            best = controller.trials[controller.best[-1]]
            text += f"; best {self._judged(best)} (trial {best.number})"
        mine = ended - (self._before or 0)
        if self._total and mine > 0 and not controller.enough:
            left = (self._total - ended) * (time.monotonic() - self._began) / mine
            text += f"; {duration_text(max(0.0, left))} left"
        return text

    def _table(self) -> Any:
        from rich.console import Group
        from rich.progress import BarColumn, MofNCompleteColumn, Progress
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for name in ("trial", "time", "step", "latest", "values"):
            table.add_column(name, style="dim" if name == "values" else None, no_wrap=True)
        now = time.time()
        for trial in sorted(self._controller.running.values(), key=lambda t: t.number):
            latest = ", ".join(f"{k} {v:.4g}" for k, v in trial.latest.items())
            step = str(trial.last_step) if trial.last_step >= 0 else ""
            table.add_row(
                str(trial.number), duration_text(now - trial.started), step, latest, values_text(trial.values)
            )
        bar = Progress(BarColumn(bar_width=40), MofNCompleteColumn())
        ended = sum(self._controller.count(s) for s in _WORDS)
        bar.add_task("trials", total=self._total, completed=ended)
        return Group(table, bar, self._counts())


def values_text(values: Mapping[str, Value]) -> str:
    """Return a point as `key=value key=value`, floats shortened."""
    return " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
