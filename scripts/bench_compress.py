"""Every compression pass with every export target: what works, and what it costs and gives.

    .venv/bin/python scripts/bench_compress.py [--model cnn vit gpt] [--passes ...] [--targets ...]

A model is trained once; every pass then starts from it, and every export is verified against its model on the whole
test split, in a process and a runtime of its own. A cell says how much faster it is at batch 1 and at batch 32 than
the trained model run eagerly in 32-bit floats (one thread, timed in the same sitting), how much of the task's metric
was lost on the test split, and its size beside the eager model's weights; or why there is none.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

from framework.config.compose import command_line_loader  # noqa: E402
from framework.config.explain import list_options  # noqa: E402
from framework.record.run import RunRecord  # noqa: E402

MODELS = {
    "cnn": ("recipe=digits",),
    "vit": ("recipe=digits", "model=vit", "optimizer.lr=2e-3", "trainer.max_epochs=20"),
    "gpt": ("recipe=stdlib_gpt", "trainer.max_steps=300", "task.sample_length=0"),
}
CHAINS = {"cnn": ("[structured_pruning,static_int8]", "[structured_pruning,distillation]")}


def sweep(model: str, passes: list[str], targets: list[str], work: Path) -> list[dict[str, str]]:
    """Run all cells; returns the sweep's table of trials."""
    command = [
        sys.executable, "run.py", "-m", *MODELS[model], f"compress={','.join(passes)}", f"export={','.join(targets)}",
        "hydra.sweeper.objectives=[{metric:model/parameters,direction:minimize}]", "measure.batch_sizes=[1,32]",
        "stages=[prepare,train,evaluate,compress,export]", f"outputs={work}", "hydra.sweeper.retries=0", "check=false",
    ]  # fmt: skip
    subprocess.run(command, cwd=HOME, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (folder,) = (work / "sweeps").iterdir()
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def cell(trial: dict[str, str]) -> str:
    """Return what a cell of the matrix says."""
    if trial["state"] != "completed":
        return "-"
    record = RunRecord(Path(trial["run"]))
    m, metric, target = record.metrics, record["main_metric"], trial["export"]
    sign = 1 if record["main_mode"] == "max" else -1
    lost = sign * (m[f"test/{metric}"] - m[f"export/{target}/{metric}"])
    size = m[f"export/{target}/bytes"] / m["eager/bytes"]
    fast = "/".join(f"{m[f'export/{target}/speedup_b{b}']:.1f}" for b in (1, 32))
    return f"{fast}x {lost:+.3f} {size:.2f}"


def main() -> None:
    """Print a matrix for each model."""
    with command_line_loader([]) as loader:
        options = {group: list_options(loader, group) for group in ("compress", "export")}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--passes", nargs="+", default=sorted(options["compress"], key=lambda p: (p != "none", p)))
    parser.add_argument("--targets", nargs="+", default=[o for o in options["export"] if o != "none"])
    arguments = parser.parse_args()
    for model in arguments.model:
        passes = [*arguments.passes, *(CHAINS.get(model, ()) if len(arguments.passes) > 1 else ())]
        with tempfile.TemporaryDirectory(prefix="bench-compress-") as work:
            trials = sweep(model, passes, arguments.targets, Path(work))
            cells = {(t["compress"], t["export"]): cell(t) for t in trials}
            width = max(20, *(len(c) + 2 for c in cells.values()))
            print(f"{model}: faster at batch 1/32, metric lost, size")
            print(f"{'':34}" + "".join(f"{t:<{width}}" for t in arguments.targets))
            for name in passes:
                print(f"{name:34}" + "".join(f"{cells.get((name, t), '?'):<{width}}" for t in arguments.targets))
            works = sum(c not in ("-", "?") for c in cells.values())
            print(f"{works} of {len(cells)} cells work, verified ({works / len(cells):.0%})")
            for trial in trials:
                if trial["state"] != "completed":
                    reason = (trial["error"].strip().splitlines() or ["?"])[0]
                    print(f"  {trial['compress']} x {trial['export']}: {reason[:200]}")
            print(flush=True)


if __name__ == "__main__":
    main()
