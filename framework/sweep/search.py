"""Where the points of a sweep come from: a `Search` suggests them, and is told what came of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from .space import Space, Value


class State(StrEnum):
    """What became of a trial; `open` ones will be gone on with."""

    open = "open"
    completed = "completed"
    pruned = "pruned"
    failed = "failed"


@dataclass(frozen=True)
class Suggestion:
    """A point to try, and the number of its trial."""

    number: int
    values: Mapping[str, Value]


@dataclass(frozen=True)
class Ending:
    """How a trial ended.

    Args:
        state: see `State`.
        values: of the objectives, in their order, where it completed.
        violations: by how much it breaks each bound; 0 or less where it keeps it.
        notes: what else is worth keeping with it (`run`, `error`).
    """

    state: State
    values: Sequence[float] = ()
    violations: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


class Search(Protocol):
    """Suggests points. All that it must remember lies where the next process finds it."""

    def ask(self) -> Suggestion | None:
        """Return the next point; None when there are no more."""

    def report(self, number: int, index: int, value: float) -> str | None:
        """Take a trial's value at its validation `index` (from 1 on); return why it is to stop, or None."""

    def tell(self, number: int, ending: Ending) -> None:
        """Take how a trial ended; being told twice changes nothing."""

    def untold(self) -> list[Suggestion]:
        """Return points that were suggested by anybody and of which nothing was told."""


class GridSearch:
    """Every combination, in the order of the command line.

    Args:
        space: of what.
        taken: whether a number's trial exists.
    """

    def __init__(self, space: Space, taken: Callable[[int], bool]) -> None:
        self._points: Iterator[tuple[int, dict[str, Value]]] = enumerate(space.grid())
        self._taken = taken

    def ask(self) -> Suggestion | None:
        for number, values in self._points:
            if not self._taken(number):
                return Suggestion(number, values)
        return None

    def report(self, number: int, index: int, value: float) -> str | None:
        return None

    def tell(self, number: int, ending: Ending) -> None:
        pass

    def untold(self) -> list[Suggestion]:
        return []
