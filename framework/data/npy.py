"""NumPy's file format (`.npy`, `.npz`), read from several threads and written to disks that may be full.

NumPy reads a file's header with `ast.literal_eval`, and CPython 3.11 and 3.12 can fail in that
(`SystemError: AST constructor recursion depth mismatch`, python/cpython#106905) when two threads do it at once:
here one at a time does.
"""

from __future__ import annotations

import io
import threading
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

_header = threading.Lock()


def map_npy(path: Path) -> npt.NDArray:
    """Return the array of a `.npy` file, mapped into memory."""
    with _header:
        mapped: npt.NDArray = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped


def write_npy(path: Path, array: npt.NDArray) -> None:
    """Write a contiguous array as a `.npy` file; unlike `np.save`, with the system's own error for a full disk."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.reshape(-1).view(np.uint8).data)


def parse_npz(content: bytes) -> dict[str, npt.NDArray]:
    """Return the arrays of a `.npz` file by name.

    Raises:
        Exception: of a type of zipfile's, zlib's or NumPy's, for a damaged file, and for one with pickled objects.
    """
    arrays: dict[str, npt.NDArray] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in archive.namelist():
            unpacked = io.BytesIO(archive.read(member))
            with _header:
                arrays[member.removesuffix(".npy")] = np.lib.format.read_array(unpacked, allow_pickle=False)
    return arrays
