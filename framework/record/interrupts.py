"""One owner of signals: a stop request ends a stage at once, or at the next safe point where there is one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from framework.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interrupts:
    """Turns SIGTERM, SIGINT and SIGUSR1 into `Preempted`.

    Outside of `deferred()` the exception is raised where the program is. Inside, the request is kept and the
    holder asks `requested` at its own safe points; a second SIGINT is raised at once all the same.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._deferred = False
        self._before: list[tuple[dict[int, Any], bool]] = []

    def __enter__(self) -> Interrupts:
        self.requested = None
        self._before.append(({s: signal.signal(s, self._handle) for s in SIGNALS}, self._deferred))
        self._deferred = False
        return self

    def __exit__(self, *_: object) -> None:
        handlers, self._deferred = self._before.pop()
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def take_back(self) -> None:
        """Install the handlers again, after a library has put its own in front of them."""
        for number in SIGNALS:
            signal.signal(number, self._handle)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Hold requests back until a safe point."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    def _handle(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        again = self.requested is not None and number == signal.SIGINT
        self.requested = name
        if not self._deferred or again:
            raise Preempted(f"stopped by {name}")


INTERRUPTS = Interrupts()
