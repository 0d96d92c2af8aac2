import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.record.run import RunRecord
from tests.conftest import HOME
from tests.integration.conftest import need

pytestmark = pytest.mark.integration


def records(file: Path) -> Iterator[object]:
    """Read a `.wandb` file: LevelDB's log format (blocks of 32 kB, records in parts) around protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, str]:
    """A run tracked offline, and the connections it tried to make."""
    folder = tmp_path_factory.mktemp("wandb")
    trace = folder / "trace"
    overrides = ["trainer.max_epochs=2", "compress=none", "export=torch_export", "measure.seconds=0.03"]
    more = ["tracker=[csv,wandb]", "tags=[a,b]", "group=g", f"outputs={folder}/outputs"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    done = subprocess.run(
        [
            need("strace"),
            "-f",
            "--seccomp-bpf",
            "-qq",
            "-e",
            "trace=connect,sendto",
            "-o",
            str(trace),
            sys.executable,
            "run.py",
            *overrides,
            *more,
        ],
        cwd=HOME,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return RunRecord(folder / "outputs" / "latest"), trace.read_text()


def test_offline_no_connection_leaves_the_machine(traced: tuple[RunRecord, str]) -> None:
    addresses = re.findall(r'sin6?_addr.*?"([^"]+)"', traced[1])
    assert [a for a in addresses if a not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")] == []


def test_config_metrics_tables_pictures_and_the_lineage_of_models_are_there(traced: tuple[RunRecord, str]) -> None:
    record = traced[0]
    (file,) = record.folder.glob("wandb/offline-run-*/run-*.wandb")
    config, summary, artifacts, steps, system = {}, {}, {}, 0, 0
    for entry in records(file):
        kind = entry.WhichOneof("record_type")
        if kind == "run":
            assert entry.run.run_group == "g"
            assert list(entry.run.tags) == ["a", "b"]
            config |= {i.key: i.value_json for i in entry.run.config.update}
        elif kind == "config":
            config |= {i.key: i.value_json for i in entry.config.update}
        elif kind == "history":
            steps += 1
            summary |= {i.key or ".".join(i.nested_key): i.value_json for i in entry.history.item}
        elif kind == "summary":
            summary |= {i.key or ".".join(i.nested_key): i.value_json for i in entry.summary.update}
        elif kind == "artifact":
            artifacts[entry.artifact.type, entry.artifact.name] = json.loads(entry.artifact.metadata or "{}")
        elif kind == "stats":
            system += 1
    assert json.loads(config["optimizer"])["lr"] == 0.003
    assert json.loads(config["data_version"]) == record["data"]["version"]
    assert float(summary["test/accuracy"]) == record.metrics["test/accuracy"]
    for key in ("train/loss", "val/accuracy", "models", "pictures/curves", "pictures/confusion", "report"):
        assert any(name == key or name.startswith(f"{key}.") for name in summary), sorted(summary)
    assert steps > 2
    assert system >= 1
    data = f"digits/{record['data']['version']}"
    assert artifacts["checkpoint", "digits-model-trained"]["dataset"] == data
    package = artifacts["package", "digits-export-torch_export"]
    assert package["dataset"] == data
    assert package["checkpoint"] == f"model/trained {record.artifacts['model/trained'].sha256}"
