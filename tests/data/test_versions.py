from dataclasses import replace
from pathlib import Path

import pytest

from framework.__main__ import main
from framework.data.ingest import ingest
from framework.data.manifest import Manifest
from framework.data.store import ShardReader
from framework.data.versions import difference, find_versions, open_version, verify
from framework.errors import DataError
from tests.data.test_ingest import RECIPE, Numbers


@pytest.fixture
def versions(tmp_path: Path) -> list[Path]:
    return [ingest(replace(RECIPE, source=Numbers((30, 50, 20 + extra))), tmp_path)[0] for extra in (0, 5)]


def test_versions_are_listed_opened_by_any_name_compared_and_removed(
    versions: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = versions
    root = f"--root={tmp_path}"
    assert main(["data", root]) == 0
    assert capsys.readouterr().out.count("numbers/") == 2
    assert (
        open_version(f"numbers/{a.name}", tmp_path) == open_version(a.name, tmp_path) == open_version(str(a), tmp_path)
    )
    assert main(["data", root, "show", a.name]) == 0
    assert "rows a shard" in capsys.readouterr().out
    assert difference(a, b)["source"] == ("(30, 50, 20)", "(30, 50, 25)")
    assert main(["data", root, "diff", a.name, b.name]) == 0
    assert "(30, 50, 25)" in capsys.readouterr().out
    assert main(["data", root, "rm", a.name]) == 0
    assert [m.version for m in find_versions(tmp_path)[0]] == [b.name]
    assert main(["data", root, "show", a.name]) == 2
    assert "there is no dataset" in capsys.readouterr().err


def test_verify_names_each_damaged_shard_and_its_rows(
    versions: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = versions[0]
    assert verify(folder) == []
    split = Manifest.read(folder).split("train")
    first, second = (folder / s.path for s in split.shards[:2])
    first.chmod(0o644)
    content = bytearray(first.read_bytes())
    content[len(content) // 3] ^= 1
    first.write_bytes(content)
    second.unlink()
    damages = verify(folder)
    assert [d.shard for d in damages] == [s.path for s in split.shards[:2]]
    assert damages[0].rows[1] - damages[0].rows[0] + 1 == split.chunk_rows
    assert damages[1].rows == (split.shard_rows, 2 * split.shard_rows - 1)
    assert main(["data", f"--root={tmp_path}", "verify", folder.name]) == 2
    assert "damaged in 2 places" in capsys.readouterr().err


def test_a_shard_in_the_place_of_another_is_refused(tmp_path: Path) -> None:
    folder, _ = ingest(replace(RECIPE, codec="none"), tmp_path)  # so that both have the same size
    first, second = (folder / s.path for s in Manifest.read(folder).split("train").shards[:2])
    first.chmod(0o644)
    first.write_bytes(second.read_bytes())
    reader = ShardReader(folder, "train")
    with pytest.raises(DataError, match="not the shard that was written here"):
        reader.read("x", 0, 5)


def test_unreadable_manifests_are_named_in_the_list(versions: list[Path], tmp_path: Path) -> None:
    manifest = versions[0] / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text("{")
    readable, unreadable = find_versions(tmp_path)
    assert len(readable) == 1
    assert str(manifest) in unreadable[0]
