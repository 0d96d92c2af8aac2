from pathlib import Path

import numpy as np
import pytest

from framework.data.sources import NumpyFiles, SklearnSet, TextFiles
from framework.data.transforms import ByteWindows, Cast, Reshape
from framework.errors import DataError


def test_text_files_come_in_partitions_and_their_fingerprint_follows_their_content(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text("x" * 100)
    source = TextFiles(root=tmp_path, partition_bytes=250)
    partitions = source.partitions()
    assert [len(p) for p in partitions] == [3, 2]
    assert source.read(partitions[1])["path"].tolist() == ["3.txt", "4.txt"]
    before = source.fingerprint()
    (tmp_path / "3.txt").write_text("y" * 100)
    assert source.fingerprint() != before


def test_no_files_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file below"):
        TextFiles(root=tmp_path).partitions()
    np.savez(tmp_path / "a.npz", x=np.arange(1000))
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:300])
    with pytest.raises(DataError, match=r"a\.npz"):
        NumpyFiles(root=tmp_path).read("a.npz")


def test_a_misspelt_sklearn_set_is_named() -> None:
    with pytest.raises(DataError, match="Did you mean `load_digits`"):
        SklearnSet("load_digit").read(0)


def test_cast_refuses_values_that_do_not_fit_and_fields_that_do_not_exist() -> None:
    with pytest.raises(DataError, match="outside uint8"):
        Cast("x", "uint8")({"x": np.array([0, 300])})
    with pytest.raises(DataError, match="Did you mean `image`"):
        Cast("imag", "uint8")({"image": np.array([0])})
    with pytest.raises(DataError, match="not \\[3\\]"):
        Reshape("x", [3])({"x": np.zeros((2, 4))})


def test_byte_windows_predict_every_token_once() -> None:
    rows = ByteWindows("text", "tokens", 4)({"text": np.array([b"abcdef", b"gh"], dtype=object)})
    stream = b"abcdef\0gh\0"
    assert [bytes(w) for w in rows["tokens"]] == [stream[0:4], stream[3:7], stream[6:10]]
