"""Where a study lies: a journal beside the sweep, a database, or Optuna's proxy of one."""

from __future__ import annotations

import time
from pathlib import Path

import optuna
from optuna.storages import BaseStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from framework.errors import UserError

JOURNAL = "journal.log"
_LOCK_GRACE_S = 15
_OPEN_TRIES, _OPEN_WAIT_S = 5, 1.0


def open_storage(url: str) -> BaseStorage:
    """Open a storage.

    Raises:
        UserError: when it cannot be had, with what is missing.
    """
    scheme, found, rest = url.partition("://")
    try:
        if not found or scheme == "journal":
            path = Path(rest if found else url).expanduser().resolve()
            if path.is_dir():
                path /= JOURNAL
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = JournalFileSymlinkLock(str(path), grace_period=_LOCK_GRACE_S)
            return optuna.storages.JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
        if scheme == "grpc":
            host, _, port = rest.partition(":")
            return optuna.storages.GrpcStorageProxy(host=host, port=int(port or 13000))
        return _open_database(url)
    except ImportError as error:
        raise UserError(f"hydra.sweeper.storage: {error}; `pip install declarative-experiments[sweeps]`") from None
    except Exception as error:
        from sqlalchemy.exc import SQLAlchemyError

        if isinstance(error, (SQLAlchemyError, OSError, ValueError)) or "grpc" in type(error).__module__:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"hydra.sweeper.storage: `{url}` cannot be opened: {reason}") from error
        raise


def _open_database(url: str) -> BaseStorage:
    """Open a database; two processes that make its tables at the same moment are in each other's way, once."""
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    for attempt in range(_OPEN_TRIES):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        except (IntegrityError, ProgrammingError, OperationalError) as error:
            if attempt == _OPEN_TRIES - 1 or "exist" not in str(error):
                raise
            time.sleep(_OPEN_WAIT_S)
    raise AssertionError("unreachable")


def mend_journal(path: Path) -> bool:
    """Cut off the half line that a process killed while it wrote, or a full disk, left; returns whether there was one.

    Nobody may be writing.
    """
    try:
        with path.open("r+b") as file:
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole == len(content):
                return False
            file.truncate(whole)
            return True
    except FileNotFoundError:
        return False
