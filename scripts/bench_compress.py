"""Every compression pass with every export target: what works, and what it costs and gives.

    .venv/bin/python scripts/bench_compress.py [--model cnn vit gpt] [--passes ...] [--targets ...]
    .venv/bin/python scripts/bench_compress.py --peers

A model is trained once; every pass then starts from it, and every export is verified against its model on the whole
test split, in a process and a runtime of its own. A cell says how much faster it is at batch 1 and at batch 32 than
the trained model run eagerly in 32-bit floats (one thread, timed in the same sitting), how much of the task's metric
was lost on the test split, and its size beside the eager model's weights; or why there is none.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

from framework.config.components import as_plain  # noqa: E402
from framework.config.compose import command_line_loader, compose_experiment  # noqa: E402
from framework.config.explain import list_options  # noqa: E402
from framework.export.process import RuntimeProcess  # noqa: E402
from framework.record.experiment import Experiment  # noqa: E402
from framework.record.run import RunRecord  # noqa: E402
from framework.training.workbench import Workbench  # noqa: E402

MODELS = {
    "cnn": ("recipe=digits",),
    "vit": ("recipe=digits", "model=vit", "optimizer.lr=2e-3", "trainer.max_epochs=20"),
    "gpt": (
        "recipe=stdlib_gpt",
        "trainer.max_steps=300",
        "task.sample_length=0",
        "data.source.max_files=250",
        "data.split.fractions={train: 0.9, val: 0.05, test: 0.05}",
    ),
}
TARGETS = ["onnx", "openvino", "torch_export", "aot_inductor", "executorch", "safetensors"]
PEERS = HOME / ".venv-peers-compress"
CHAINS = {
    "cnn": ("[structured_pruning,static_int8]", "[structured_pruning,distillation]"),
    "vit": ("[structured_pruning,static_int8]", "[structured_pruning,low_rank_factorisation]"),
    "gpt": ("[structured_pruning,weight_int8]",),
}


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


def peers(work: Path) -> None:
    """Print int8 of the digits CNN beside ONNX Runtime's own quantiser and NNCF, calibrated on the same rows."""
    run = work / "run"
    chain = ("compress=static_int8", "export=[onnx,openvino]", f"outputs={work}", f"run_dir={run}")
    subprocess.run([sys.executable, "run.py", *MODELS["cnn"], *chain], cwd=HOME, check=True, stdout=subprocess.DEVNULL)
    plain = ("compress=none", "export=[onnx,openvino]", f"from_run={run}", "stages=[compress,export]")
    command = [sys.executable, "run.py", *plain, f"outputs={work}", f"run_dir={work / 'plain'}"]
    subprocess.run(command, cwd=HOME, check=True, stdout=subprocess.DEVNULL)
    config, _ = compose_experiment([*MODELS["cnn"], f"outputs={work}"])
    record = RunRecord(run)
    bench = Workbench(Experiment(config, record), record["data"]["path"])
    rows = [b["image"].numpy() for b in bench.eval_loader("train")]
    np.save(work / "calibration.npy", np.concatenate(rows)[:512])
    ends = {"onnx": "model.onnx", "openvino": "model.xml"}
    for target, end in ends.items():
        (work / "theirs" / target).mkdir(parents=True)
        if not PEERS.exists():
            uv = str(HOME / ".venv/bin/uv")
            subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(PEERS)], check=True)
            wanted = ["onnxruntime", "onnx", "openvino", "nncf", "sympy"]
            subprocess.run([uv, "pip", "install", "-q", "--python", str(PEERS / "bin/python"), *wanted], check=True)
        files = [work / "plain/export" / target / end, work / "calibration.npy", work / "theirs" / target / end]
        theirs = [str(p) for p in (PEERS / "bin/python", HOME / "scripts/compress_contenders.py", target, *files)]
        subprocess.run(theirs, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    nodes = {target: as_plain(compose_experiment([f"export={target}"])[0].export[target]) for target in ends}
    contenders = {
        "PT2E (static_int8), ONNX Runtime": ("onnx", run / "export/onnx"),
        "ONNX Runtime's quantize_static": ("onnx", work / "theirs/onnx"),
        "PT2E (static_int8), OpenVINO": ("openvino", run / "export/openvino"),
        "NNCF on OpenVINO": ("openvino", work / "theirs/openvino"),
    }
    test = [(b["image"].numpy(), b["label"].numpy()) for b in bench.eval_loader("test")]
    print("int8 of the digits CNN                 accuracy   ms b1  ms b32   kB")
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(RuntimeProcess(name, nodes[target], folder, 1))
            for name, (target, folder) in contenders.items()
        }
        times: dict[tuple[str, int], list[float]] = {}
        for _ in range(5):
            for name, process in processes.items():
                for size in (1, 32):
                    times.setdefault((name, size), []).extend(process.time([test[0][0][:size]], 0.3))
        for name, process in processes.items():
            right = sum(int((process.run([x]).argmax(-1) == y).sum()) for x, y in test)
            accuracy = right / sum(len(y) for _, y in test)
            b1, b32 = (statistics.median(times[name, size]) for size in (1, 32))
            folder = contenders[name][1]
            kilobytes = sum(f.stat().st_size for f in folder.glob("model.*")) / 1e3
            print(f"  {name:36} {accuracy:8.4f} {b1:7.4f} {b32:7.4f} {kilobytes:5.0f}")


def main() -> None:
    """Print a matrix for each model."""
    with command_line_loader([]) as loader:
        options = {group: list_options(loader, group) for group in ("compress", "export")}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--passes", nargs="+", default=sorted({*options["compress"]} - {"auto"}, key=lambda p: (p != "none", p))
    )
    parser.add_argument("--targets", nargs="+", default=TARGETS, choices=options["export"])
    parser.add_argument("--peers", action="store_true", help="only int8 beside other quantisers")
    arguments = parser.parse_args()
    if arguments.peers:
        with tempfile.TemporaryDirectory(prefix="bench-compress-") as work:
            peers(Path(work))
        return
    for model in arguments.model:
        passes = [*arguments.passes, *(CHAINS.get(model, ()) if len(arguments.passes) > 1 else ())]
        with tempfile.TemporaryDirectory(prefix="bench-compress-") as work:
            trials = sweep(model, passes, arguments.targets, Path(work))
            for trial in trials:  # what does not vary has no column
                trial.setdefault("export", arguments.targets[0])
                trial.setdefault("compress", passes[0])
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
