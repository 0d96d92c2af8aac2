"""Sources behind a URL, against a real S3-speaking server on loopback."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from framework.data.file_sources import Csv, JsonLines, NumpyFiles, TextFiles
from framework.data.files import file_system
from framework.data.ingest import ingest
from framework.data.manifest import Field, Manifest
from framework.data.sources import ZarrArrays
from tests.data.test_ingest import RECIPE
from tests.integration.conftest import s3_server

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    import s3fs
    import zarr

    with s3_server("data"):
        system = s3fs.S3FileSystem()
        for i in range(4):
            system.pipe(f"data/text/{i}.txt", f"file {i} ".encode() * 100)
            rows = range(100 * i, 100 * i + 100)
            system.pipe(f"data/table/{i}.csv", ("x\n" + "".join(f"{r}\n" for r in rows)).encode())
            system.pipe(f"data/table/{i}.jsonl", "".join(json.dumps({"x": r}) + "\n" for r in rows).encode())
            with system.open(f"data/arrays/{i}.npz", "wb") as file:
                np.savez(file, x=np.arange(100 * i, 100 * i + 100))
        zarr.open_group("s3://data/z", mode="w").create_array("x", data=np.arange(400), chunks=(100,))
        yield "s3://data"


def test_every_kind_of_file_is_read_from_s3_and_ingested(bucket: str, tmp_path: Path) -> None:
    sources = [
        Csv(root=f"{bucket}/table", block_bytes=150),
        JsonLines(root=f"{bucket}/table", block_bytes=500),
        NumpyFiles(root=f"{bucket}/arrays"),
        ZarrArrays(f"{bucket}/z", {"x": "x"}, partition_rows=150),
    ]
    for i, source in enumerate(sources):
        recipe = replace(RECIPE, source=source, fields={"x": Field("int64", ())})
        folder, made = ingest(recipe, tmp_path / str(i))
        assert made
        assert sum(s.rows for s in Manifest.read(folder).splits.values()) == 400
        assert ingest(recipe, tmp_path / str(i)) == (folder, False)
    text = TextFiles(root=bucket + "/text")
    assert [t[:7] for t in text.read(text.partitions()[0])["text"]] == [f"file {i} ".encode() for i in range(4)]


def test_a_changed_object_makes_another_version(bucket: str) -> None:
    import s3fs

    source = TextFiles(root=bucket + "/text")
    before = source.fingerprint()
    system = s3fs.S3FileSystem()
    system.pipe("data/text/0.txt", b"other words")
    file_system(bucket)[0].invalidate_cache()
    assert source.fingerprint() != before
