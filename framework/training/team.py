"""The processes of a node's ranks: starting them, watching them, and saying why one failed.

One `python -m framework.training.rank` for each rank. Rank 0 sends metrics through a pipe; each rank leaves
`ranks/rank_<n>.txt` (its output) and, when it ends badly, `ranks/rank_<n>.json` (why). When one dies, the others are
ended; the first cause is the one that is reported. On several nodes, each starts and watches its own ranks; all of them
see the run directory, and the process with the run record, which is on the first, gathers what they say.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.errors import EXIT_DONE, EXIT_PREEMPTED, Preempted, UserError
from framework.record.files import write_json
from framework.record.interrupts import INTERRUPTS, SIGNALS

STEPS = "steps_{node}"
POLL_S = 0.05
LEAVE_S = 20.0  # for the others to end by themselves once one has failed
KILL_S = 5.0
STARTUP_S = 300.0  # more for the first step: imports, compilation, the first shards


TEAM = "team.json"


@dataclass(frozen=True)
class Place:
    """Where this node is among those that train together.

    Args:
        nodes: how many there are.
        node: which one this is, from 0.
        head: the first one's address.
        port: where ranks meet there; 0 for one that is free.
    """

    nodes: int = 1
    node: int = 0
    head: str = "127.0.0.1"
    port: int = 0

    @classmethod
    def of_first(cls, nodes: int) -> Place:
        """Return the place of the first of some nodes, as the scheduler tells it.

        Raises:
            UserError: when there is another number of nodes.
        """
        given = int(os.environ.get("FRAMEWORK_NODES", "1"))
        if given != nodes:
            raise UserError(
                f"strategy.num_nodes: {nodes} nodes are wanted, and this job has {given}; a launcher gives them, as in "
                f"hydra/launcher=slurm hydra.launcher.nodes={nodes}"
            )
        head, port = os.environ.get("FRAMEWORK_HEAD", "127.0.0.1"), int(os.environ.get("FRAMEWORK_PORT", "0"))
        return cls(nodes, 0, head, port)


class RankFailed(Exception):
    """A rank ended with an error that is not the user's; the message holds its traceback."""


class Team:
    """The processes of a node's ranks.

    Args:
        size: how many.
        folder: for their output, and what they say when they fail.
        arguments: of `python -m framework.training.rank`.
        pipe: file descriptor to which rank 0 writes metrics.
        hang_s: seconds without a step after which the rank that is behind is named.
        place: which node this is.
    """

    def __init__(
        self, size: int, folder: Path, arguments: Sequence[str], pipe: int, hang_s: float, place: Place = Place()
    ) -> None:
        self.size, self.folder, self.arguments, self.pipe, self.hang_s = size, folder, arguments, pipe, hang_s
        self.place, self.world, self.first = place, size * place.nodes, size * place.node
        self.processes: list[subprocess.Popen[bytes]] = []
        self._id = secrets.token_hex(4)
        self._beats = folder / STEPS.format(node=place.node)
        self._beats.write_bytes(bytes(8 * size))

    def __enter__(self) -> Team:
        port = self.place.port or _free_port()
        if self.place.nodes > 1 and self.place.node == 0:
            asked = {
                "id": self._id,
                "start": os.environ.get("FRAMEWORK_START", ""),
                "nodes": self.place.nodes,
                "devices": self.size,
                "head": self.place.head,
                "port": port,
                "arguments": list(self.arguments),
                "hang_s": self.hang_s,
            }
            write_json(self.folder / TEAM, asked)
        theirs, self._alive = os.pipe()  # closed when this process ends, whatever way: then the ranks end, too
        for local in range(self.size):
            rank = self.first + local
            environment = {
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(local),
                "GROUP_RANK": str(self.place.node),
                "WORLD_SIZE": str(self.world),
                "LOCAL_WORLD_SIZE": str(self.size),
                "MASTER_ADDR": self.place.head,
                "MASTER_PORT": str(port),
                "TORCHELASTIC_RUN_ID": "run",
            }
            if self.place.nodes == 1:
                environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
            with (self.folder / f"rank_{rank}.txt").open("wb") as output:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "framework.training.rank", *self.arguments, str(theirs), str(self.pipe)],
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=None if rank == 0 else output,
                        stderr=output,
                        pass_fds=[theirs, self.pipe],
                        start_new_session=True,  # the terminal's signals come to this process, which hands them on
                    )
                )
        os.close(theirs)
        return self

    def __exit__(self, *_: object) -> None:
        self._end(0.0)
        os.close(self._alive)

    def watch(self, is_stale: Callable[[], bool] = lambda: False) -> None:
        """Wait for all ranks; hand on signals; when a rank fails, end the others and raise its cause.

        Args:
            is_stale: whether nobody waits for these ranks any longer.
        """
        told = False
        ended: list[int] = []  # local ranks, in the order in which they did
        progress, since = -1, time.monotonic()
        while len(ended) < self.size:
            time.sleep(POLL_S)
            ended += [r for r, p in enumerate(self.processes) if r not in ended and p.poll() is not None]
            if any(self.processes[r].returncode not in (EXIT_DONE, EXIT_PREEMPTED) for r in ended):
                self._end(LEAVE_S)
                raise self._cause(ended)
            if is_stale():
                raise RankFailed("the first node has begun anew")
            if self.place.node == 0 and any(said["ended"] != "well" for said in self._others()):
                self._end(LEAVE_S)
                raise self._cause(ended)
            if INTERRUPTS.requested is not None and not told:
                self._signal(signal.SIGTERM)
                told = True
            slowest = min(self.steps())
            if slowest != progress:
                progress, since = slowest, time.monotonic()
            elif time.monotonic() - since > self.hang_s + (STARTUP_S if slowest == 0 else 0):
                raise RankFailed(self._describe_hang())
        if self.place.node == 0:
            self._wait_for_others(LEAVE_S)
        if any(p.returncode for p in self.processes) or any(said["ended"] != "well" for said in self._others()):
            raise self._cause(ended)

    def _others(self) -> list[dict[str, Any]]:
        """Return what other nodes have said of this training."""
        said = []
        for node in range(1, self.place.nodes):
            with suppress(OSError, json.JSONDecodeError):
                said.append(json.loads((self.folder / f"node_{node}.json").read_text(encoding="utf-8")))
        return [one for one in said if one["id"] == self._id]

    def _wait_for_others(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while len(self._others()) < self.place.nodes - 1 and time.monotonic() < end:
            time.sleep(POLL_S)

    def steps(self) -> list[int]:
        """Return the last step that each rank has done."""
        return list(struct.unpack(f"{self.size}q", self._beats.read_bytes()))

    def _describe_hang(self) -> str:
        steps = self.steps()
        behind = [self.first + r for r, step in enumerate(steps) if step == min(steps)]
        others = "" if len(behind) == self.size else f"; the others wait at step {max(steps)}"
        names = " and ".join(f"rank {r}" for r in behind)
        return (
            f"{names} has not ended a step for {self.hang_s:g} s, after step {min(steps)}{others}. "
            f"Its output is in `{self.folder}`; for longer steps make trainer.hang_s larger"
        )

    def _signal(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def _end(self, patience: float) -> None:
        """Let the ranks that still run end by themselves for a while, then kill them."""
        self._wait(patience)
        self._signal(signal.SIGKILL)
        self._wait(KILL_S)

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and any(p.poll() is None for p in self.processes):
            time.sleep(POLL_S)

    def _cause(self, first: Sequence[int]) -> Exception:
        """Return why the ranks ended: what the user can mend, else a stop, else what happened first."""
        if self.place.node == 0:
            self._wait_for_others(LEAVE_S)
        said: dict[int, dict[str, Any]] = {}
        for rank in range(self.world):
            file = self.folder / f"rank_{rank}.json"
            if file.exists():
                said[rank] = json.loads(file.read_text(encoding="utf-8"))
        for why in said.values():
            if why["kind"] == "user":
                return UserError(why["message"])
        silent = [r for r in first if self.processes[r].returncode and self.first + r not in said]
        if silent:
            code, rank = self.processes[silent[0]].returncode, self.first + silent[0]
            if INTERRUPTS.requested is not None and -code in SIGNALS:
                return Preempted(f"stopped by {INTERRUPTS.requested} before rank {rank} could listen")
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            tail = (self.folder / f"rank_{rank}.txt").read_text(errors="replace").strip().splitlines()[-5:]
            return RankFailed("\n".join([f"rank {rank} {how}", *tail]))
        for other in self._others():  # a rank there that could not say anything itself
            if other["ended"] != "well" and " killed by " in other["message"].splitlines()[0]:
                return RankFailed(other["message"])
        if said and all(why["kind"] == "preempted" for why in said.values()):
            return Preempted(next(iter(said.values()))["message"])
        failed = [(r, w) for r, w in said.items() if w["kind"] != "preempted"]
        if not failed:
            return RankFailed(
                next((o["message"] for o in self._others() if o["ended"] != "well"), "a node said nothing")
            )
        rank, why = min(failed, key=lambda pair: pair[1]["time"])
        return RankFailed(f"rank {rank}: {why['message']}\n{why['traceback']}")


def _free_port() -> int:
    """Return a port that is free, and below those that connections are given: rank 0 will listen on it in seconds."""
    while True:
        port = 15_000 + secrets.randbelow(17_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port


def heartbeat(file: Path, rank: int) -> Any:
    """Return a function that writes a rank's step where `Team.steps` reads it."""
    with file.open("r+b") as opened:
        memory = mmap.mmap(opened.fileno(), 0)

    def beat(step: int) -> None:
        struct.pack_into("q", memory, 8 * rank, step)

    return beat
