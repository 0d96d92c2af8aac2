"""The parent's side of `framework.export.worker`: one exported model in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from framework.errors import UserError


class RuntimeProcess:
    """Loads an export in a process of its own, runs it and times it there. A context manager.

    Args:
        name: named in errors.
        node: the target's config node.
        folder: what the target wrote.
        threads: threads of the runtime.

    Raises:
        UserError: when the runtime cannot load or run the model; the message is the runtime's own.
    """

    def __init__(self, name: str, node: Mapping[str, Any], folder: Path, threads: int) -> None:
        self.name = name
        self._scratch = tempfile.TemporaryDirectory(prefix="framework-export-")
        self._log = (Path(self._scratch.name) / "stderr").open("w+", encoding="utf-8", errors="replace")
        count = str(threads)
        paths = os.pathsep.join(p or str(Path.cwd()) for p in sys.path)
        limits = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "framework.export.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **limits, "PYTHONPATH": paths},
        )
        self._send({"do": "load", "node": node, "key": f"export.{name}", "folder": str(folder), "threads": threads})
        self._loaded = False

    def __enter__(self) -> RuntimeProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._scratch.cleanup()

    def run(self, arrays: Sequence[npt.NDArray]) -> npt.NDArray:
        """Return the output for a batch of inputs."""
        outputs = Path(self._scratch.name) / "outputs.npy"
        self._ask({"do": "run", "inputs": self._put(arrays), "outputs": str(outputs)})
        return np.load(outputs)

    def time(self, arrays: Sequence[npt.NDArray], seconds: float) -> list[float]:
        """Return the milliseconds of each call on a batch of inputs."""
        return self._ask({"do": "time", "inputs": self._put(arrays), "seconds": seconds})["latencies_ms"]

    def peak_memory(self, arrays: Sequence[npt.NDArray]) -> float:
        """Run a batch; return the most memory, in bytes, that the process has had: Python, the runtime, the model."""
        return float(self._ask({"do": "memory", "inputs": self._put(arrays)})["bytes"])

    def _put(self, arrays: Sequence[npt.NDArray]) -> str:
        file = Path(self._scratch.name) / "inputs.npz"
        np.savez(file, *arrays)
        return str(file)

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if not self._loaded:  # loading went on while the parent did other things
            self._receive()
            self._loaded = True
        self._send(request)
        return self._receive()

    def _send(self, request: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(f"export.{self.name}: its runtime refused the model: {answer['error']}")
        return answer

    def _died(self) -> UserError:
        code = self._process.wait()
        self._log.seek(0)
        last = "\n".join(self._log.read().strip().splitlines()[-5:])
        return UserError(f"export.{self.name}: its runtime ended with code {code}:\n{last}")
