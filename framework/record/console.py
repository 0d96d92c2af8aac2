"""What a person sees while a run is going on: lines, and progress with rate and time left."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from framework.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    EXIT_USER,
    Preempted,
    UserError,
    is_disk_full,
    reason_of,
)

LOGGER = logging.getLogger("framework")
_PLAIN_EVERY_S = 15.0
Advance = Callable[..., None]


def say(message: str) -> None:
    """Show a line on the terminal and write it to the run's log."""
    LOGGER.info(message)


@contextmanager
def quiet() -> Iterator[None]:
    """Show and log no lines, for work that is done many times over."""
    before = LOGGER.level
    LOGGER.setLevel(logging.WARNING)
    try:
        yield
    finally:
        LOGGER.setLevel(before)


_handlers: list[list[logging.Handler]] = []


def start_logging(log_file: Path | None) -> None:
    """Send the framework's lines to the terminal, and everything (libraries' warnings, too) to `log_file`.

    Until `stop_logging`; what an outer call had set up waits for that.
    """
    root = logging.getLogger()
    for handler in _handlers[-1] if _handlers else []:
        root.removeHandler(handler)
    root.setLevel(logging.INFO)
    terminal = logging.StreamHandler(sys.stdout)
    terminal.addFilter(lambda record: record.name == "framework" and not getattr(record, "file_only", False))
    terminal.setFormatter(logging.Formatter("%(message)s"))
    _handlers.append([terminal])
    if log_file is not None:
        file = logging.FileHandler(log_file, encoding="utf-8", delay=True)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        _handlers[-1].append(file)
    for handler in _handlers[-1]:
        root.addHandler(handler)
    logging.captureWarnings(True)


def stop_logging() -> None:
    """Close what the last `start_logging` opened, and go back to what was before."""
    root = logging.getLogger()
    for handler in _handlers.pop() if _handlers else []:
        root.removeHandler(handler)
        handler.close()
    for handler in _handlers[-1] if _handlers else []:
        root.addHandler(handler)


def on_terminal() -> bool:
    """Return whether a person watches."""
    return sys.stdout.isatty()


def report_failure(error: BaseException) -> int:
    """Tell the user why something ended, on standard error, and return the exit code that says the same.

    What the user can mend is one message; a bug is shown with its traceback.
    """
    if isinstance(error, Preempted):
        print(f"{error}; the same command with run_dir=PATH goes on", file=sys.stderr)
        return EXIT_PREEMPTED
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    if not (isinstance(error, UserError) or is_disk_full(error)):
        traceback.print_exception(error)
    print(f"error: {reason_of(error)}", file=sys.stderr)
    return EXIT_USER if isinstance(error, UserError) else EXIT_FAILED


@contextmanager
def progress(what: str, total: int | None, unit: str = "", done: int = 0) -> Iterator[Advance]:
    """Show the progress of long work; yields `advance(n=1, note="")`.

    On a terminal a bar with rate and time left; elsewhere a plain line now and then. `done` was done before.
    """
    if on_terminal():
        yield from _bar(what, total, unit, done)
    else:
        yield from _lines(what, total, unit, done)


def _bar(what: str, total: int | None, unit: str, done: int) -> Iterator[Advance]:
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} {unit}/s" if task.speed else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}" if total else "{task.completed:,.0f}"),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(what, total=total, note="", completed=done)

        def advance(n: int = 1, note: str = "") -> None:
            bar.advance(task, n)
            if note:
                bar.update(task, note=note)

        yield advance


def _lines(what: str, total: int | None, unit: str, done: int) -> Iterator[Advance]:
    began = last = time.monotonic()
    before = done

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= _PLAIN_EVERY_S:
            last = now
            rate = (done - before) / (now - began)
            left = f", {(total - done) / rate:,.0f} s left" if total and rate else ""
            share = f"{done:,}/{total:,}" if total else f"{done:,}"
            say(f"  {what}: {share} {unit} at {rate:,.0f}/s{left} {note}".rstrip())

    yield advance


def duration_text(seconds: float) -> str:
    """Return `0.4 s`, `12 s`, `3 min 10 s`, `2 h 5 min`, `4 d`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    if seconds < 172_800:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    return f"{seconds // 86_400:.0f} d"


def bytes_text(count: float) -> str:
    """Return `812 B`, `14.2 kB`, `3.1 MB`, `2.0 GB` (decimal units)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """Return a table as plain text: a heading, a rule, and rows; the first column to the left, others to the right."""
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]

    def row(line: Sequence[str]) -> str:
        first, *rest = zip(line, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]).rstrip()

    return "\n".join([row(cells[0]), "  ".join("─" * w for w in widths), *map(row, cells[1:])])
