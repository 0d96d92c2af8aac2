"""The errors a user can cause, and what the process says to its caller when it ends."""

from __future__ import annotations

import errno
import os

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USER = 2
EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """Something the user can mend: config, data or arguments.

    Shown as its message alone, without traceback, with exit code 2; never retried.
    The message says what is wrong, where, and what to do.
    """


class DataError(UserError):
    """A dataset, shard or source that is missing, damaged or malformed; the message names it."""


class Preempted(Exception):
    """The run was stopped by a signal after a good checkpoint; running it again goes on (exit code 75)."""


class Ended(Exception):
    """It ended badly, and has said so: nothing is left but to exit with a code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def is_disk_full(error: BaseException) -> bool:
    """Return whether a full disk is what an error comes from; libraries in C++ and Rust say so in words only."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return True
    return os.strerror(errno.ENOSPC) in str(error)


def reason_of(error: BaseException) -> str:
    """Return one sentence that says why something ended: the message, and the type where it is not ours."""
    if isinstance(error, (UserError, Preempted)):
        return str(error)
    if is_disk_full(error):
        where = f" (`{error.filename}`)" if isinstance(error, OSError) and error.filename else ""
        return f"the disk is full{where}; make room and run again"
    return f"{type(error).__name__}: {error}"


class ConfigWarning(UserWarning):
    """A setting that has no effect where it stands."""


def did_you_mean(word: str, known: list[str] | tuple[str, ...]) -> str:
    """Return `" Did you mean `x`?"` for the nearest of `known`, or an empty string."""
    from difflib import get_close_matches

    near = get_close_matches(word, [str(k) for k in known], n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(f'`{n}`' for n in near)}?" if near else ""
