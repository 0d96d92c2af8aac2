"""A sweep on a SLURM of four nodes, while workers, nodes and controllers are killed at random.

    .venv/bin/python scripts/fault_launch.py [--trials 60] [--kills 30]

It starts a SLURM of its own (`scripts/slurm_local`: needs root, and Debian's slurmctld, slurmd, slurm-client, munge).
Each trial trains on two ranks. Each kill is one of: a trial's process; one of its ranks; a node's daemon and all that
runs on the node (it comes back half a minute later); the controller, which is then started again by the same command.
At the end every trial must have one result, no point may have been tried twice, and trials chosen by chance must have
the metrics of the same run undisturbed.

Two cores: killed: 8 x controller, 5 x node, 10 x rank, 7 x worker; 60 of 60 trials have their result, none twice.
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
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

from framework.launch.jobs import Job  # noqa: E402
from framework.record.run import RunRecord  # noqa: E402

NODES = 4
SMALL = ("recipe=digits", "stages=[prepare,train]", "model.widths=[8,16]", "compress=none", "export=none",
         "trainer.max_epochs=6", "trainer.threads=1", "strategy=ddp", "strategy.devices=2")  # fmt: skip


class Site:
    """A SLURM, and a sweep on it.

    Args:
        folder: for both.
        trials: how many.
    """

    def __init__(self, folder: Path, trials: int) -> None:
        self.folder, self.slurm = folder, folder / "slurm"
        os.environ["SLURM_PORT"] = str(random.SystemRandom().randrange(20_000, 30_000))
        try:
            self._script("up", str(NODES))
        except subprocess.CalledProcessError:
            self._script("down")
            raise
        os.environ["SLURM_CONF"] = str(self.slurm / "slurm.conf")
        seeds = ",".join(map(str, range(trials)))
        self.command = [
            sys.executable, str(HOME / "run.py"), "-m", *SMALL, f"seed={seeds}", f"outputs={folder}/o",
            "hydra/launcher=slurm", f"hydra.sweeper.n_jobs={NODES}", "hydra.sweeper.retries=20",
            "hydra.sweeper.reuse=false",
        ]  # fmt: skip
        self.controller = self.start()

    def _script(self, *arguments: str) -> None:
        action, *others = arguments
        command = [str(HOME / "scripts" / "slurm_local"), action, str(self.slurm), *others]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def start(self) -> subprocess.Popen[bytes]:
        """Start a controller."""
        log = (self.folder / "controller.txt").open("ab")
        return subprocess.Popen(self.command, cwd=HOME, stdout=log, stderr=log, start_new_session=True)

    def processes(self, what: str, node: int | None = None) -> list[int]:
        """Return the workers (`launch.worker`) or ranks (`training.rank`) of trials: all, or those of a node."""
        pattern = f"python.* -m framework.{what} {self.folder}"
        found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True)
        numbers = []
        for pid in map(int, found.stdout.split()):
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:
                continue
            if node is None or f"SLURMD_NODENAME=n{node}\0".encode() in environment:
                numbers.append(pid)
        return numbers

    def kill_worker(self) -> bool:
        """Kill a trial's process."""
        return self._kill_one("launch.worker")

    def kill_rank(self) -> bool:
        """Kill a rank of a trial."""
        return self._kill_one("training.rank")

    def _kill_one(self, what: str) -> bool:
        if not (running := self.processes(what)):
            return False
        os.kill(random.choice(running), signal.SIGKILL)
        return True

    def kill_controller(self) -> bool:
        """Kill the controller; the same command goes on."""
        os.killpg(self.controller.pid, signal.SIGKILL)
        self.controller.wait()
        self.controller = self.start()
        return True

    def kill_node(self) -> bool:
        """Kill a node's daemon, and all that runs there; it comes back later."""
        node = random.randint(1, NODES)
        try:
            os.kill(int((self.slurm / "run" / f"slurmd.n{node}.pid").read_text()), signal.SIGKILL)
        except (OSError, ValueError):
            return False
        for pid in self.processes("launch.worker", node) + self.processes("training.rank", node):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(random.uniform(1, 30))
        self._script("up", str(NODES))
        return True


def main() -> int:
    """Run the sweep and the killers; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="fault-launch-") as place:
        site = Site(Path(place), arguments.trials)
        done: dict[str, int] = {}
        try:
            while not list(Path(place).glob("o/sweeps/*/trials/*/handle.json")):
                time.sleep(0.5)
            while sum(done.values()) < arguments.kills and site.controller.poll() is None:
                time.sleep(random.uniform(2, 10))
                if site.controller.poll() is None:
                    name = random.choices(("worker", "rank", "node", "controller"), (3, 3, 2, 2))[0]
                    if getattr(site, f"kill_{name}")():
                        done[name] = done.get(name, 0) + 1
            code = site.controller.wait()
            bad = judge(Path(place), arguments.trials)
            print(f"killed: {', '.join(f'{count} x {name}' for name, count in sorted(done.items()))}; "
                  f"the sweep ended with {code}")  # fmt: skip
            print("\n".join(bad) or f"{arguments.trials} of {arguments.trials} trials have their result, none twice")
            if bad or code:
                print((Path(place) / "controller.txt").read_text()[-3000:])
            return 1 if bad or code else 0
        finally:
            if site.controller.poll() is None:
                os.killpg(site.controller.pid, signal.SIGKILL)
            site._script("down")


def judge(place: Path, trials: int) -> list[str]:
    """Return what is not as it should be."""
    bad = []
    (sweep,) = (place / "o" / "sweeps").iterdir()
    jobs = [Job(folder) for folder in (sweep / "trials").iterdir()]
    seeds = sorted(int(job.notes["values"]["seed"]) for job in jobs)
    if seeds != list(range(trials)):
        bad.append(f"points are missing or were tried twice: {seeds}")
    results = {int(job.notes["values"]["seed"]): job.result() for job in jobs}
    for seed, result in results.items():
        if result is None or str(result.status) != "completed":
            bad.append(f"seed {seed}: {result}")
    counts = json.loads((sweep / "study.json").read_text())["counts"]
    if counts["completed"] != trials:
        bad.append(f"the study counts {counts}")
    for seed in random.sample(sorted(results), min(4, len(results))):
        undisturbed = place / "undisturbed" / str(seed)
        command = [sys.executable, "run.py", *SMALL, f"seed={seed}", f"outputs={place}/o", f"run_dir={undisturbed}"]
        subprocess.run(command, cwd=HOME, check=True, stdout=subprocess.DEVNULL)
        wanted, result = RunRecord(undisturbed).metrics, results[seed]
        if result is not None and result.metrics.get("val/loss") != wanted["val/loss"]:
            bad.append(f"seed {seed}: val/loss {result.metrics.get('val/loss')}, undisturbed {wanted['val/loss']}")
    return bad


if __name__ == "__main__":
    sys.exit(main())
