"""The currency of ingest: rows as a mapping from field name to an array whose first axis counts rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from framework.errors import DataError

Rows = dict[str, npt.NDArray]
_FEISTEL_ROUNDS = 6


def count(rows: Rows) -> int:
    """Return the number of rows.

    Raises:
        DataError: when the fields disagree about it.
    """
    lengths = {name: len(array) for name, array in rows.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"fields of different length: {lengths}")
    return next(iter(lengths.values()), 0)


def take(rows: Rows, index: npt.NDArray) -> Rows:
    """Return the rows that `index` (integers or a mask) selects."""
    return {name: array[index] for name, array in rows.items()}


def mix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Hash 64-bit integers, each on its own (the finaliser of SplitMix64; Steele et al., OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        x = values + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def row_keys(seed: int, epoch: int, first: int, count: int) -> npt.NDArray[np.uint64]:
    """Return a key for each of `count` places of an epoch, from place `first` on: what chance is drawn from there."""
    base = mix64(np.array([seed, epoch], dtype=np.uint64))
    places = np.arange(first, first + count, dtype=np.uint64)
    return mix64(places ^ mix64(base[:1] ^ mix64(base[1:])))


def permuted(places: npt.NDArray[np.int64], count: int, seed: int) -> npt.NDArray[np.int64]:
    """Return what a random permutation of 0..count-1 has at some places, without making the rest of it.

    A Feistel network on the least even number of bits that holds `count`; values beyond it walk on along their cycle
    until they fall below (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002).
    """
    half = np.uint64(max(1, -(-(count - 1).bit_length() // 2)))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = mix64(np.arange(_FEISTEL_ROUNDS, dtype=np.uint64) ^ mix64(np.array([seed], dtype=np.uint64)))
    out = places.astype(np.uint64)
    walking = np.arange(len(out))
    while len(walking):
        left, right = out[walking] >> half, out[walking] & mask
        for key in keys:
            left, right = right, left ^ (mix64(right ^ key) & mask)
        out[walking] = (left << half) | right
        walking = walking[out[walking] >= count]
    return out.astype(np.int64)
