"""What launching costs: a thousand jobs, asking after them, and the way from submission to the first line of work.

    .venv/bin/python scripts/bench_launch.py [--jobs 1000] [--parts many turnaround]

It starts a SLURM of its own on this machine (`scripts/slurm_local`: needs root, and Debian's slurmctld, slurmd,
slurm-client, munge). `many`: one array of jobs that end at once, submitted from one process: seconds, memory, bytes of
code, and what asking after all of them costs. `turnaround`: from submission to the end of a job whose work is nothing,
beside plain `sbatch` of the same import. `submitit`: from the command to a job's first line, beside
hydra-submitit-launcher (in an environment of its own, `.venv-peers-launch`, made on first use).

Two cores, beside other work:
1,000 jobs: snapshot 0.09 s, configs 5.34 s, sbatch and handles 0.10 s: 5.53 s in all
  memory grew by 2.0 MB; snapshots: 1
  one question for all: 0.070 s, 0.070 ms a job
submission to end, work of nothing: ours 0.99 s, plain sbatch of the same import 1.01 s: -0.02 s
command to a job's first line, two jobs, five sittings: ours 2.2, 1.6, 2.4, 2.1, 2.2 s, hydra-submitit-launcher 1.8,
2.0, 1.7, 2.2, 1.4 s
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

from framework.config.compose import compose_experiment  # noqa: E402
from framework.config.plugins import register  # noqa: E402
from framework.launch.backend import Phase  # noqa: E402
from framework.launch.cluster import SlurmLauncher  # noqa: E402
from framework.launch.jobs import Job, Result, Status  # noqa: E402
from framework.launch.slurm import SlurmBackend  # noqa: E402

PEERS = HOME / ".venv-peers-launch"
ROUNDS = 8
APPLICATION = """
import time, hydra
from pathlib import Path

@hydra.main(version_base=None, config_path=None)
def main(config):
    Path("began").write_text(str(time.time()))

main()
"""


@contextmanager
def slurm(folder: Path, nodes: int) -> Iterator[None]:
    """Run a SLURM, and point this process at it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ["SLURM_PORT"] = str(probe.getsockname()[1] - 20)
    script = str(HOME / "scripts" / "slurm_local")
    subprocess.run([script, "up", str(folder), str(nodes)], check=True, stdout=subprocess.DEVNULL)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        yield
    finally:
        subprocess.run([script, "down", str(folder)], check=True)


def many(count: int, work: Path) -> None:
    """Submit many jobs at once, of which none is let run, and ask after them."""
    config, _ = compose_experiment(["recipe=digits", f"outputs={work}"])
    launcher = SlurmLauncher(extra={"hold": True})
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    backend = launcher.backend(count, work)
    snapshot = time.perf_counter()
    jobs = [Job.create(work / "jobs" / str(i), config, [f"seed={i}"], {"title": "many"}) for i in range(count)]
    written = time.perf_counter()
    backend.submit_all(jobs, work / "array", throttle=50)
    submitted = time.perf_counter()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    asked = []
    assert isinstance(backend, SlurmBackend)
    for _ in range(5):
        backend._asked = 0.0
        start = time.perf_counter()
        phases = backend.phases(jobs)
        asked.append(time.perf_counter() - start)
    assert set(phases) == {Phase.waiting}
    print(f"{count:,} jobs: snapshot {snapshot - began:.2f} s, configs {written - snapshot:.2f} s, "
          f"sbatch and handles {submitted - written:.2f} s: {submitted - began:.2f} s in all")  # fmt: skip
    print(f"  memory grew by {grown / 1e3:.1f} MB; snapshots: {len(list((work / '.snapshots').glob('[0-9a-f]*')))}")
    asking = statistics.median(asked)
    print(f"  one question for all: {asking:.3f} s, {asking / count * 1e3:.3f} ms a job")
    subprocess.run(["scancel", "--me"], check=True)


def turnaround(work: Path) -> None:
    """Time jobs that do nothing, in turns."""
    config, _ = compose_experiment(["recipe=digits", f"outputs={work}"])
    backend = SlurmLauncher().backend(1, work)
    nothing = work / "nothing.sh"
    command = f"srun {sys.executable} -c 'import framework.launch.worker'"
    nothing.write_text(f"#!/bin/bash\n#SBATCH --output=/dev/null\n{command}\n")
    ours, plain = [], []
    for i in range(ROUNDS):
        job = Job.create(work / "turn" / str(i), config, [], {"title": "turn"})
        job.write_result(Result(job.attempt, Status.completed, 0))  # so that its worker finds nothing to do
        began = time.perf_counter()
        backend.submit(job)
        number = (job.folder / "handle.json").read_text().split('"')[7]
        while subprocess.run(["squeue", "-h", "-j", number], capture_output=True, text=True).stdout:
            time.sleep(0.05)
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        said = subprocess.run(["sbatch", "--parsable", str(nothing)], capture_output=True, text=True, check=True)
        while subprocess.run(["squeue", "-h", "-j", said.stdout.strip()], capture_output=True, text=True).stdout:
            time.sleep(0.05)
        plain.append(time.perf_counter() - began)
    print(f"submission to end, work of nothing: ours {statistics.median(ours):.2f} s, "
          f"plain sbatch of the same import {statistics.median(plain):.2f} s: "
          f"{statistics.median(ours) - statistics.median(plain):+.2f} s")  # fmt: skip


def submitit(work: Path) -> None:
    """Time hydra-submitit-launcher from the command to the first line of the application, and ours beside it."""
    if not PEERS.exists():
        uv = str(HOME / ".venv/bin/uv")
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(PEERS)], check=True)
        wanted = ["hydra-submitit-launcher", "hydra-core<1.4", "setuptools"]
        subprocess.run([uv, "pip", "install", "-q", "--python", str(PEERS / "bin/python"), *wanted], check=True)
    (work / "app.py").write_text(APPLICATION)
    theirs, ours = [], []
    for i in range(3):
        began = time.time()
        options = ["hydra/launcher=submitit_slurm", "hydra.launcher.tasks_per_node=1", f"hydra.sweep.dir={work}/s{i}"]
        options += ["hydra.launcher.partition=main", "hydra.job.chdir=true", "hydra.launcher.mem_gb=1", "+x=1,2"]
        command = [str(PEERS / "bin/python"), "app.py", "-m", *options]
        subprocess.run(command, cwd=work, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        theirs.append(statistics.mean(float(f.read_text()) for f in (work / f"s{i}").rglob("began")) - began)
        began = time.time()
        command = [sys.executable, str(HOME / "run.py"), "-m", "hydra/launcher=slurm", "hydra.sweeper.n_jobs=2"]
        options = ["seed=1,2", "stages=[prepare,train]", "trainer.max_epochs=1", "model.widths=[8,16]"]
        options += ["compress=none", "export=none", f"outputs={work}/o{i}"]
        subprocess.run([*command, *options], cwd=HOME, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        starts = [Job(f.parent).result() for f in Path(work, f"o{i}").glob("sweeps/*/trials/*/job.json")]
        ours.append(statistics.mean(r.started for r in starts if r is not None) - began)
    print(f"command to a job's first line, two jobs: ours {statistics.median(ours):.1f} s, "
          f"hydra-submitit-launcher {statistics.median(theirs):.1f} s")  # fmt: skip


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--parts", nargs="+", choices=["many", "turnaround", "submitit"],
                        default=["many", "turnaround", "submitit"])  # fmt: skip
    arguments = parser.parse_args()
    register()
    with tempfile.TemporaryDirectory(prefix="bench-launch-") as folder, slurm(Path(folder) / "slurm", 4):
        for part in arguments.parts:
            work = Path(folder) / part
            work.mkdir()
            if part == "many":
                many(arguments.jobs, work)
            else:
                {"turnaround": turnaround, "submitit": submitit}[part](work)


if __name__ == "__main__":
    main()
