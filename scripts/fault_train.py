"""Faults, injected for real into trainings: each must end with the undisturbed weights, or with a clear word.

    .venv/bin/python scripts/fault_train.py                   # 50 kills of the run, 20 of a rank, and the rest
    .venv/bin/python scripts/fault_train.py --kills 2 --rank-kills 1 --only "kill -9 of the run"

Prints a table, and exits with 1 when a fault got through. Trainings are on CPUs, one thread a rank.

On two cores (some 25 minutes):

    kill -9 of the run            50 kills, 1 trainings: the weights of an undisturbed one, to the bit
    kill -9 of a rank             20 times: named, the run over within 0 s, and gone on to the same bits
    SIGTERM to one rank, to all   single, ddp, fsdp2, deepspeed_zero1, 2, 3, _offload: exit code 75, and gone on to ...
    damaged checkpoints           passed over with a warning, the one before is taken: the same bits; none good: ...
    a full disk                   one message; with room the same command goes on to the end
    a loader that raises          exit code 2 and the shard's name, from two ranks as from one
    NaN                           exit code 2, with the step, its rows and advice
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from safetensors.numpy import load_file

HOME = Path(__file__).resolve().parent.parent
STRATEGIES = (
    "single",
    "ddp",
    "fsdp2",
    "fsdp2_tp",
    "deepspeed_zero1",
    "deepspeed_zero2",
    "deepspeed_zero3",
    "deepspeed_offload",
)
SMALL = (
    "model=vit", "model.width=32", "model.depth=2", "model.dropout=0.1", "stages=[prepare,train]", "compress=none",
    "trainer.threads=1", "trainer.checkpoint.every_n_steps=7", "scheduler._target_=disturbance.cosine",
)  # fmt: skip
LONG = (*SMALL, "trainer.max_epochs=40")
SHORT = (*SMALL, "trainer.max_epochs=2")


class GotThrough(Exception):
    """A fault that did harm."""


def start(folder: Path, *overrides: str, disturb: dict[str, object] | None = None) -> subprocess.Popen[str]:
    """Start a training in a run directory."""
    environment = {**os.environ, "PYTHONPATH": str(HOME / "scripts"), "DISTURB": json.dumps(disturb or {})}
    places = (f"outputs={folder.parent}", f"data.store.root={folder.parent}/datasets", f"run_dir={folder}")
    command = [sys.executable, "run.py", *overrides, *places]
    return subprocess.Popen(
        command, cwd=HOME, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str], expected: int = 0) -> str:
    """Wait for a training, and return what it printed."""
    output, _ = process.communicate(timeout=600)
    if process.returncode != expected:
        raise GotThrough(f"exit code {process.returncode} instead of {expected}: {output[-1500:]}")
    return output


def require_equal(a: Path, b: Path) -> None:
    """Raise unless two runs have the same weights, to the bit."""
    x, y = (load_file(folder / "model" / "trained" / "weights.safetensors") for folder in (a, b))
    if x.keys() != y.keys() or any((x[n] != y[n]).any() for n in x):
        raise GotThrough(f"`{a}` and `{b}` have other weights")


def checkpoints(folder: Path) -> list[Path]:
    """Return a run's checkpoints, oldest first."""
    return sorted(folder.glob("checkpoints/step_*"))


def kill_the_run(count: int, work: Path) -> str:
    """kill -9 the run at random moments, many times in a row, until it ends."""
    finish(start(work / "good", *LONG))
    process = start(work / "killed", *LONG)
    done = 0
    while done < count:
        time.sleep(random.uniform(4, 9))
        if process.poll() is not None:
            finish(process)
            process = start(work / f"killed{done}", *LONG)  # it was through before all kills: another one
            continue
        process.kill()
        process.communicate()
        done += 1
        process = start(Path(str(process.args[-1]).partition("=")[2]), *LONG)  # type: ignore[index]
    finish(process)
    ended = [f for f in work.glob("killed*") if (f / "model").exists()]
    for folder in ended:
        require_equal(work / "good", folder)
    return f"{count} kills, {len(ended)} trainings: the weights of an undisturbed one, to the bit"


def kill_a_rank(count: int, work: Path) -> str:
    """kill -9 one rank of two at random steps; the run ends at once, and goes on."""
    training = (*SHORT, "strategy=ddp")
    finish(start(work / "good", *training))
    longest = 0.0
    for i in range(count):
        folder, rank = work / f"rank{i}", random.randrange(2)
        process = start(folder, *training, disturb={"step": random.randrange(1, 38), "do": "SIGKILL", "rank": rank})
        output = finish(process, 1)
        if f"rank {rank} was killed by SIGKILL" not in output:
            raise GotThrough(f"the cause is not named: {output[-1500:]}")
        died = max(f.stat().st_mtime for f in (folder / "ranks").glob("*"))
        longest = max(longest, (folder / "run.json").stat().st_mtime - died)
        finish(start(folder, *training))
        require_equal(work / "good", folder)
    return f"{count} times: named, the run over within {longest:.0f} s, and gone on to the same bits"


def stop_one_or_all(_: int, work: Path) -> str:
    """SIGTERM to one rank, and to all, in every strategy."""
    for strategy in STRATEGIES:
        training = (*SHORT, f"strategy={strategy}")
        finish(start(work / strategy, *training))
        for rank in (0,) if strategy == "single" else (1, None):
            folder = work / f"{strategy}-{rank}"
            finish(start(folder, *training, disturb={"step": 17, "do": "SIGTERM", "rank": rank}), 75)
            finish(start(folder, *training))
            require_equal(work / strategy, folder)
    return f"{', '.join(STRATEGIES)}: exit code 75, and gone on to the same bits"


def damaged_checkpoint(_: int, work: Path) -> str:
    """Flip a bit in the newest checkpoint; then in all."""
    finish(start(work / "good", *SHORT))
    folder = work / "damaged"
    finish(start(folder, *SHORT, disturb={"step": 30, "do": "SIGTERM"}), 75)
    file = checkpoints(folder)[-1] / "state.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    output = finish(start(folder, *SHORT))
    if "passed over" not in output or "damaged" not in output:
        raise GotThrough(f"the damage is not named: {output[-1500:]}")
    require_equal(work / "good", folder)
    folder = work / "all"
    finish(start(folder, *SHORT, disturb={"step": 30, "do": "SIGTERM"}), 75)
    for step in checkpoints(folder):
        (step / "weights.safetensors").write_bytes(b"")
    if "is good" not in finish(start(folder, *SHORT), 2):
        raise GotThrough("a run without any good checkpoint does not say so")
    return "passed over with a warning, the one before is taken: the same bits; none good: exit code 2"


def full_disk(_: int, work: Path) -> str:
    """Fill the disk while a checkpoint is written."""
    disk = work / "disk"
    disk.mkdir()
    finish(start(work / "good", *SHORT))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], check=True)
    try:
        folder = disk / "run"
        places = (f"data.store.root={work}/datasets",)
        output = finish(start(folder, *SHORT, "model.width=128", *places), 1)
        if "the disk is full" not in output or "Traceback" in output:
            raise GotThrough(f"the full disk is not said: {output[-1500:]}")
        subprocess.run(["mount", "-o", "remount,size=80m", str(disk)], check=True)
        finish(start(folder, *SHORT, "model.width=128", *places))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return "one message; with room the same command goes on to the end"


def loader_raises(_: int, work: Path) -> str:
    """Flip a bit in a shard, so that reading it fails on the ranks."""
    finish(start(work / "good", *SHORT, "strategy=ddp"))
    shard = next(f for f in (work / "datasets").glob("*/*/train/image/c/**/0") if f.is_file())
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(content)
    output = finish(start(work / "other", *SHORT, "strategy=ddp"), 2)
    if "is damaged" not in output or "Traceback" in output:
        raise GotThrough(f"the shard is not named: {output[-1500:]}")
    return "exit code 2 and the shard's name, from two ranks as from one"


def spoilt(_: int, work: Path) -> str:
    """Spoil the parameters with NaN."""
    for strategy in ("single", "ddp"):
        output = finish(start(work / strategy, *SHORT, f"strategy={strategy}", disturb={"step": 11, "do": "nan"}), 2)
        if "training loss is nan at step 12; it took rows" not in output:
            raise GotThrough(f"it is not said: {output[-1500:]}")
    return "exit code 2, with the step, its rows and advice"


FAULTS: dict[str, Callable[[int, Path], str]] = {
    "kill -9 of the run": kill_the_run,
    "kill -9 of a rank": kill_a_rank,
    "SIGTERM to one rank, to all": stop_one_or_all,
    "damaged checkpoints": damaged_checkpoint,
    "a full disk": full_disk,
    "a loader that raises": loader_raises,
    "NaN": spoilt,
}


def main() -> int:
    """Inject every fault; returns the exit code."""
    parser = argparse.ArgumentParser(description="Inject faults into trainings.")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--rank-kills", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=list(FAULTS), choices=list(FAULTS))
    arguments = parser.parse_args()
    random.seed(0)
    counts = {"kill -9 of the run": arguments.kills, "kill -9 of a rank": arguments.rank_kills}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    failed = 0
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as work:
            try:
                outcome = FAULTS[name](counts.get(name, 0), Path(work))
            except (GotThrough, subprocess.SubprocessError) as error:
                outcome, failed = f"GOT THROUGH: {error}", failed + 1
        print(f"{name:30}{outcome}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
