"""What the training loop costs beside a bare Lightning Trainer and a bare PyTorch loop; waiting for data; saving.

    .venv/bin/python scripts/bench_train.py

Each contender is a process of its own, on one thread. *Step*: an MLP of 64-64-10 on batches of 64 digits, 3,000 steps,
AdamW, gradients clipped, cosine schedule, batches from our loader for all; ours logs ten metrics every 50 steps to a
CSV file. *GPT*: the recipe's model and data, bf16 on a GPU where there is one (`--model gpt_124m` there), against a
bare loop of the same model and batches. *Waiting*: the share of the time for which the loop waited for batches.
*Saving*: for how long training stands still for a checkpoint of 20 million parameters with AdamW's state, written at
once or in the background.

Measured on two cores (a virtual machine), Python 3.11, torch 2.13.0, pytorch-lightning 2.6.6; no GPU was to be had:

    a step of the MLP                                   us
      ours                                           1,107
      a bare Lightning Trainer                       1,049   ours is 1.06x
      a Lightning Trainer, ten self.log              3,888   ours is 0.28x
      a bare PyTorch loop                              721   ours is 1.54x

    a step of the GPT                                   ms
      ours                                           75.15
      a bare PyTorch loop                            72.92   ours is 0.970 of its speed

    waiting for data, share of the time
      GPT                                            0.24%
      digits, CNN                                    1.72%

    training stands still for a checkpoint              ms
      written at once                                  833
      written in the background                         99   0.12 of it
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent.parent
STEPS = 3000
MLP = (
    "model=mlp", "model.hidden=[64]", "model.dropout=0", "trainer.deterministic=false", "trainer.max_epochs=-1",
    f"trainer.max_steps={STEPS}", "trainer.log_every_n_steps=50", "trainer.validate_every_n_steps=1000000",
    "trainer.threads=1",
)  # fmt: skip
GPT = ("recipe=stdlib_gpt", "trainer.deterministic=false", "trainer.log_every_n_steps=10", "trainer.max_steps=100")


def bench_of(folder: Path, *overrides: str) -> Any:
    """Return a Workbench of a composed experiment, its data prepared."""
    from framework.config.compose import compose_experiment
    from framework.data.dataset import run as prepare
    from framework.record.experiment import Experiment
    from framework.record.run import RunRecord
    from framework.training.workbench import Workbench

    config, _ = compose_experiment([*overrides, f"outputs={folder}", f"data.store.root={folder}/datasets"])
    experiment = Experiment(config, RunRecord.create(folder, "bench"))
    prepare(experiment)
    bench = Workbench(experiment, experiment.record["data"]["path"])
    bench.seed()
    return bench


def model_of(bench: Any) -> Any:
    """Return the experiment's model, fresh."""
    from framework.config.components import build

    return build(bench.config.model, "model")


def between(times: list[float], steps: int) -> float:
    """Return the median time of a step from the times at which so many steps were done, without the first."""
    return statistics.median((b - a) / steps for a, b in pairwise(times[1:]))


def ours(folder: Path, *overrides: str) -> dict[str, float]:
    """Return seconds a step, and the share of the time that was waited for batches, of our own loop."""
    from framework.tracking.csv import CsvTracker
    from framework.training.fit import fit

    bench = bench_of(folder, *overrides)
    tracker = CsvTracker()
    tracker.start(bench.experiment.record, {})
    times: list[float] = []
    waited: list[float] = []

    def log(metrics: dict[str, float], step: int) -> None:
        tracker.log({**metrics, **{f"further/{i}": metrics.get("train/loss", 0.0) for i in range(2)}}, step)
        if "train/waiting_for_data" in metrics:
            times.append(time.perf_counter())
            waited.append(metrics["train/waiting_for_data"])

    fit(bench, model_of(bench), folder / "fit", what="training", log=log)
    every = bench.config.trainer.log_every_n_steps
    return {"step": between(times, every), "waited": statistics.median(waited[1:])}


def batches_of(bench: Any) -> Any:
    """Return the batches of the whole training, from shards, as our own loop takes them."""
    from framework.data.loader import Steps

    return Steps(bench.train_loader(), bench.config.trainer.max_steps)


def bare(folder: Path, *overrides: str) -> dict[str, float]:
    """Return seconds a step of a plain PyTorch loop."""
    import torch

    from framework.config.components import build
    from framework.training.groups import parameter_groups, with_parameters
    from framework.training.tasks import forward

    bench = bench_of(folder, *overrides)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model_of(bench).to(device).train()
    steps = bench.config.trainer.max_steps
    optimizer = build(bench.config.optimizer, "optimizer")(with_parameters(model, parameter_groups(model)))
    schedule = build(bench.config.scheduler, "scheduler")(optimizer, steps)
    low = bench.config.precision.lightning == "bf16-mixed"
    times = []
    every = bench.config.trainer.log_every_n_steps
    for i, given in enumerate(batches_of(bench)):
        batch = {n: t.to(device) for n, t in given.items()}
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=low):
            loss = bench.task.loss(forward(model, bench.task, batch), batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (i + 1) % every == 0:
            loss.item()
            times.append(time.perf_counter())
    return {"step": between(times, every)}


def lightning(folder: Path, *overrides: str, logged: int = 0) -> dict[str, float]:
    """Return seconds a step of a bare Lightning Trainer, with so many metrics logged by `self.log`."""
    import pytorch_lightning as pl

    from framework.config.components import build
    from framework.training.groups import parameter_groups, with_parameters
    from framework.training.tasks import forward

    bench = bench_of(folder, *overrides)
    steps, every = bench.config.trainer.max_steps, bench.config.trainer.log_every_n_steps
    times: list[float] = []

    class Plain(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model_of(bench)

        def training_step(self, batch: Any, i: int) -> Any:
            loss = bench.task.loss(forward(self.model, bench.task, batch), batch)
            for number in range(logged):
                self.log(f"metric/{number}", loss)
            if (i + 1) % every == 0:
                times.append(time.perf_counter())
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = build(bench.config.optimizer, "optimizer")(
                with_parameters(self.model, parameter_groups(self.model))
            )
            schedule = build(bench.config.scheduler, "scheduler")(optimizer, steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        max_steps=steps,
        use_distributed_sampler=False,
        logger=pl.loggers.CSVLogger(str(folder)) if logged else False,
        log_every_n_steps=50,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
    )
    trainer.fit(Plain(), batches_of(bench))
    return {"step": between(times, every)}


def saving(folder: Path, in_background: bool) -> dict[str, float]:
    """Return for how many seconds training stands still for a checkpoint, the median."""
    from framework.training import saving as module
    from framework.training.fit import fit

    overrides = ("model.hidden=[4096,4096,512]", "trainer.max_steps=12", "trainer.max_epochs=-1", "trainer.threads=1")
    every = ("trainer.checkpoint.every_n_steps=4", "trainer.validate_every_n_steps=1000000")
    background = f"trainer.checkpoint.in_background={str(in_background).lower()}"
    bench = bench_of(folder, "model=mlp", *overrides, *every, background)
    times: list[float] = []
    original = module.Checkpoints.save

    def timed(self: Any, *arguments: Any) -> None:
        began = time.perf_counter()
        original(self, *arguments)
        times.append(time.perf_counter() - began)
        if in_background:
            self.store.wait()  # the next one must not wait for this one: steps are short here

    module.Checkpoints.save = timed  # type: ignore[assignment,method-assign]
    fit(bench, model_of(bench), folder / "fit", what="training", log=lambda metrics, step: None)
    return {"pause": statistics.median(times)}


CONTENDERS: dict[str, Callable[[Path, list[str]], dict[str, float]]] = {
    "ours": lambda folder, more: ours(folder, *MLP),
    "a bare Lightning Trainer": lambda folder, more: lightning(folder, *MLP),
    "a Lightning Trainer, ten self.log": lambda folder, more: lightning(folder, *MLP, logged=10),
    "a bare PyTorch loop": lambda folder, more: bare(folder, *MLP),
    "GPT, ours": lambda folder, more: ours(folder, *GPT, *more),
    "GPT, a bare PyTorch loop": lambda folder, more: bare(folder, *GPT, *more),
    "digits": lambda folder, more: ours(folder, "trainer.log_every_n_steps=10", "trainer.deterministic=false"),
    "at once": lambda folder, more: saving(folder, False),
    "in the background": lambda folder, more: saving(folder, True),
}


def in_process(name: str, more: list[str]) -> dict[str, float]:
    """Run one contender in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", name, "--", *more], capture_output=True, text=True, cwd=HOME, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    return found


def main() -> None:
    """Measure everything, and print tables with ratios."""
    parser = argparse.ArgumentParser(description="Measure the training loop.")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--model", default="gpt", help="of the GPT's comparison; gpt_124m where there is a GPU")
    parser.add_argument("more", nargs="*", help="further overrides of the GPT's comparison")
    arguments = parser.parse_args()
    if arguments.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(CONTENDERS[arguments.one](Path(folder), arguments.more)))
        return
    print(f"{'a step of the MLP':44}{'us':>10}")
    steps = {}
    for name in list(CONTENDERS)[:4]:
        steps[name] = in_process(name, [])["step"]
        ratio = f"   ours is {steps['ours'] / steps[name]:.2f}x" if name != "ours" else ""
        print(f"  {name:42}{steps[name] * 1e6:>10,.0f}{ratio}", flush=True)
    print(f"\n{'a step of the GPT':44}{'ms':>10}")
    more = [f"model={arguments.model}", *arguments.more]
    gpt = in_process("GPT, ours", more)
    plain = in_process("GPT, a bare PyTorch loop", more)["step"]
    print(f"  {'ours':42}{gpt['step'] * 1e3:>10,.2f}")
    print(f"  {'a bare PyTorch loop':42}{plain * 1e3:>10,.2f}   ours is {plain / gpt['step']:.3f} of its speed")
    print(f"\n{'waiting for data, share of the time':44}")
    print(f"  {'GPT':42}{gpt['waited']:>10.2%}")
    print(f"  {'digits, CNN':42}{in_process('digits', [])['waited']:>10.2%}")
    print(f"\n{'training stands still for a checkpoint':44}{'ms':>10}")
    once, background = (in_process(name, [])["pause"] for name in ("at once", "in the background"))
    print(f"  {'written at once':42}{once * 1e3:>10,.0f}")
    print(f"  {'written in the background':42}{background * 1e3:>10,.0f}   {background / once:.2f} of it", flush=True)


if __name__ == "__main__":
    main()
