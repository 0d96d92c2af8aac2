from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from framework.data.npy import map_npy, parse_npz, write_npy


@pytest.fixture
def switching_threads() -> Iterator[None]:
    """Run Python code, at which threads take turns, wherever an object is made: as Dask's watch of the collector does,
    only more often."""
    before, interval = gc.get_threshold(), sys.getswitchinterval()

    def callback(phase: str, info: dict[str, int]) -> None:
        sum(range(50))

    gc.callbacks.append(callback)
    gc.set_threshold(1)
    sys.setswitchinterval(1e-6)
    yield
    gc.set_threshold(*before)
    sys.setswitchinterval(interval)
    gc.callbacks.remove(callback)


@pytest.mark.usefixtures("switching_threads")
def test_files_are_read_by_several_threads_at_once(tmp_path: Path) -> None:
    wanted = np.arange(10)
    write_npy(tmp_path / "a.npy", wanted)
    np.savez_compressed(tmp_path / "a.npz", a=wanted)
    packed = (tmp_path / "a.npz").read_bytes()
    failed: list[BaseException] = []

    def repeat(read: Callable[[], np.ndarray]) -> None:
        try:
            for _ in range(300):
                assert (read() == wanted).all()
        except BaseException as error:
            failed.append(error)

    reads: list[Callable[[], np.ndarray]] = [lambda: map_npy(tmp_path / "a.npy"), lambda: parse_npz(packed)["a"]] * 2
    threads = [threading.Thread(target=repeat, args=(read,)) for read in reads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
