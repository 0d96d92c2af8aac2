import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zarr
from PIL import Image
from pyarrow import csv, parquet

from framework.data.file_sources import Csv, ImageFolder, JsonLines, NumpyFiles, Parquet, TextFiles
from framework.data.sources import SklearnSet, Synthetic, ZarrArrays
from framework.data.text_transforms import ByteWindows
from framework.data.transforms import Cast, Reshape
from framework.errors import DataError, UserError


def test_text_files_come_in_partitions_and_their_fingerprint_follows_their_content(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text("x" * 100)
    source = TextFiles(root=tmp_path, partition_bytes=250)
    partitions = source.partitions()
    assert [len(p) for p in partitions] == [2, 2, 1]
    assert source.read(partitions[1])["path"].tolist() == ["2.txt", "3.txt"]
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


def read_all(source: object) -> dict[str, list]:
    parts = [source.read(p) for p in source.partitions()]
    return {name: [x for part in parts for x in part[name]] for name in parts[0]}


def test_tables_are_read_in_partitions_with_their_types(tmp_path: Path) -> None:
    table = pa.table({"n": range(1000), "x": [i / 4 for i in range(1000)], "word": [f"w{i}" for i in range(1000)]})
    csv.write_csv(table, tmp_path / "a.csv")
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in table.to_pylist()))
    for source in (
        Csv(root=tmp_path, block_bytes=2000),
        Parquet(root=tmp_path),
        JsonLines(root=tmp_path, block_bytes=5000),
    ):
        assert len(source.partitions()) > 3
        rows = read_all(source)
        assert rows["n"] == list(range(1000))
        assert rows["x"] == [i / 4 for i in range(1000)]
        assert rows["word"] == [f"w{i}" for i in range(1000)]
        assert source.read(source.partitions()[1])["n"].dtype == np.int64
    with pytest.raises(DataError, match="no column `m`"):
        Csv(root=tmp_path, columns=["m"]).read(("a.csv", 0, 100_000))


@pytest.mark.parametrize(
    ("name", "content", "source"),
    [
        ("a.csv", b"n,x\n1,2\n1,2,3\n", Csv),
        ("a.csv", b"n,x\n1,\n", Csv),
        ("a.parquet", b"PAR1 not", Parquet),
        ("a.jsonl", b'{"n": 1}\n{"n": \n', JsonLines),
        ("a.jsonl", b'{"n": 1}\n{"m": 2}\n', JsonLines),
    ],
)
def test_a_malformed_file_is_an_error_that_names_it(tmp_path: Path, name: str, content: bytes, source: type) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=str(tmp_path / name)):
        read_all(source(root=tmp_path))


def test_images_are_labelled_by_their_folder(tmp_path: Path) -> None:
    for i, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for j in range(3):
            Image.new("RGB", (10 + j, 8), (i * 100, j, 0)).save(tmp_path / name / f"{j}.{'png' if j else 'jpg'}")
    source = ImageFolder(root=tmp_path)
    assert source.classes() == ["cat", "dog"]
    rows = read_all(source)
    assert rows["label"] == [0, 0, 0, 1, 1, 1]
    assert [x.shape for x in rows["image"]] == [(3, 8, 10), (3, 8, 11), (3, 8, 12)] * 2
    assert rows["image"][5][:, 0, 0].tolist() == [100, 2, 0]
    (tmp_path / "cat" / "9.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"9\.png"):
        read_all(source)


def test_an_existing_zarr_array_and_synthetic_rows_of_any_number(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "z", mode="w")
    group.create_array("pixels", data=np.arange(250 * 3).reshape(250, 3), chunks=(100, 3))
    rows = read_all(ZarrArrays(str(tmp_path / "z"), {"x": "pixels"}, partition_rows=100))
    np.testing.assert_array_equal(rows["x"], np.arange(750).reshape(250, 3))
    with pytest.raises(DataError, match="no such Zarr arrays"):
        ZarrArrays(str(tmp_path / "z"), {"x": "nothing"}).partitions()
    made = Synthetic(25, {"x": {"shape": [2], "dtype": "float32"}}, partition_rows=10)
    assert [len(made.read(p)["x"]) for p in made.partitions()] == [10, 10, 5]


def test_a_protocol_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"declarative-experiments\[gcs\]"):
        TextFiles(root="gs://bucket/folder").partitions()
    with pytest.raises(UserError, match="nonsense"):
        TextFiles(root="nonsense://x").partitions()
