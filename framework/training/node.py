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

from framework.errors import Preempted, UserError, reason_of
from framework.record.files import write_json
from framework.record.interrupts import INTERRUPTS

from .team import TEAM, Place, Team

POLL_S = 0.2


def help_train(run: Path, node: int, current_start: Callable[[], str | None], is_over: Callable[[], bool]) -> None:
    """Take part in trainings of a run until the first node has ended.

    Args:
        run: the run directory.
        node: which one this is, from 1.
        current_start: names the start of the job that the first node belongs to; what an earlier one asked for is
            not begun, and given up.
        is_over: whether the first node has ended; what went wrong in a rank is for that one to say.
    """
    helped, known = "", os.environ.get("FRAMEWORK_START")

    def is_stale(start: str) -> bool:
        return start != current_start() or (known is not None and start != known)

    with INTERRUPTS, INTERRUPTS.deferred():  # the first node gets the same signal, and decides
        while not is_over():
            team = _asked(run)
            if team is not None and team["id"] != helped and not is_stale(team["start"]):
                helped = team["id"]
                _help(run, node, team, is_stale)
            time.sleep(POLL_S)


def _asked(run: Path) -> dict[str, Any] | None:
    try:
        return json.loads((run / "ranks" / TEAM).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def _help(run: Path, node: int, asked: dict[str, Any], is_stale: Callable[[str], bool]) -> None:
    place = Place(asked["nodes"], node, asked["head"], asked["port"])
    said: dict[str, object] = {"id": asked["id"], "ended": "well"}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        with Team(asked["devices"], run / "ranks", asked["arguments"], nowhere, asked["hang_s"], place) as team:
            team.watch(lambda: is_stale(asked["start"]))
    except Preempted:
        pass
    except Exception as error:
        kind = "user" if isinstance(error, UserError) else "failed"
        said = {"id": asked["id"], "ended": kind, "message": reason_of(error), "trace": traceback.format_exc()}
    finally:
        os.close(nowhere)
    write_json(run / "ranks" / f"node_{node}.json", said)
