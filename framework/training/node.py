"""A further node of a training: starts its share of ranks whenever the first node begins to train.

Nodes find each other by the run directory, which all of them see: the first one writes `ranks/team.json` for each
training; every other one answers with `ranks/node_<n>.json` when its ranks have ended.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from framework.errors import EXIT_DONE, Preempted, UserError, reason_of
from framework.record.files import write_json
from framework.record.interrupts import INTERRUPTS

from .ranks import TEAM, Place, Team

POLL_S = 0.2


def help_train(run: Path, is_over: Callable[[], bool]) -> int:
    """Take part in trainings of a run until it is over.

    Args:
        run: the run directory.
        is_over: whether the first node has ended.

    Returns:
        the exit code; what went wrong in a rank is the first node's to say.
    """
    node, helped = int(os.environ["FRAMEWORK_NODE_RANK"]), ""
    with INTERRUPTS, INTERRUPTS.deferred():  # the first node gets the same signal, and decides
        while not is_over():
            if (team := _asked(run)) is not None and team["id"] != helped and team["start"] == _start():
                helped = team["id"]
                _help(run, node, team)
            time.sleep(POLL_S)
    return EXIT_DONE


def _start() -> str | None:
    return os.environ.get("FRAMEWORK_START")


def _asked(run: Path) -> dict[str, Any] | None:
    try:
        return json.loads((run / "ranks" / TEAM).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def _help(run: Path, node: int, asked: dict[str, Any]) -> None:
    place = Place(asked["nodes"], node, asked["head"], asked["port"])
    said: dict[str, object] = {"id": asked["id"], "ended": "well"}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        with Team(asked["devices"], run / "ranks", asked["arguments"], nowhere, asked["hang_s"], place) as team:
            team.watch()
    except Preempted:
        pass
    except Exception as error:
        kind = "user" if isinstance(error, UserError) else "failed"
        said = {"id": asked["id"], "ended": kind, "message": reason_of(error), "trace": traceback.format_exc()}
    finally:
        os.close(nowhere)
    write_json(run / "ranks" / f"node_{node}.json", said)
