"""The training of one rank: Lightning's Trainer, with what happens at the boundary of a step (`callbacks.py`)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from torch import nn

from framework.config.components import build
from framework.data.loader import Steps
from framework.record.interrupts import INTERRUPTS

from .acceleration import accelerated
from .averaging import Averaging
from .callbacks import Heartbeat, MetricsLog, ProgressLine, Validation
from .checkpoints import CheckpointFolder
from .module import LogMetrics, TrainingModule
from .saving import Checkpoints, load_best
from .step import Boundary, StepCallback
from .stopping import Stop
from .workbench import Workbench


@dataclass(frozen=True)
class Job:
    """What is to be trained, beside the experiment's config; see `fit`."""

    what: str
    length: float = 1.0
    learning_rate_scale: float = 1.0
    resume: bool = False


@dataclass(frozen=True)
class Fitted:
    """What a training gave: validation metrics of the best weights, the precision that was really used."""

    metrics: dict[str, float]
    steps: int
    precision: str
    device: str


def train(
    bench: Workbench,
    model: nn.Module,
    folder: Path,
    job: Job,
    log: LogMetrics,
    beat: Callable[[int], None] | None = None,
) -> Fitted:
    """Train a model in this process, which is one of `strategy.devices` ranks; if it is the only one, the model then
    holds the best weights.

    Args:
        bench, model, folder, log: see `fit`; `log` is called on rank 0 only.
        job: what is to be trained.
        beat: called with the number of each step that is done.
    """
    cfg = bench.config
    limits, world = cfg.trainer, cfg.strategy.devices * cfg.strategy.num_nodes
    local_batch = limits.global_batch_size // world
    micro_batches = local_batch // (limits.micro_batch_size or local_batch)
    steps_per_epoch = len(bench.train_loader(0, world)) // micro_batches
    total = total_steps(limits.max_epochs, limits.max_steps, steps_per_epoch, job.length)
    store = CheckpointFolder(
        folder, limits.checkpoint.keep, limits.checkpoint.keep_every_n_steps, limits.checkpoint.in_background
    )
    found = store.newest() if job.resume else None
    if found is not None:
        model.load_state_dict(found[1], strict=False)
    optimizer = build(cfg.optimizer, "optimizer")
    module = TrainingModule(
        model,
        bench.task,
        _scaled(optimizer, job.learning_rate_scale) if job.learning_rate_scale != 1.0 else optimizer,
        build(cfg.scheduler, "scheduler") if cfg.scheduler else None,
        log,
        steps_per_epoch,
    )
    with _quiet_lightning():
        trainer = pl.Trainer(
            accelerator=cfg.strategy.accelerator.value,
            devices=cfg.strategy.devices,
            num_nodes=cfg.strategy.num_nodes,
            strategy=build(cfg.strategy.plugin, "strategy.plugin") if cfg.strategy.plugin else "auto",
            plugins=[TorchElasticEnvironment() if world > 1 else LightningEnvironment()],
            precision=cfg.precision.lightning,
            max_epochs=1,
            max_steps=total,
            accumulate_grad_batches=micro_batches,
            gradient_clip_val=limits.gradient_clip,
            deterministic="warn" if limits.deterministic else None,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        rank = trainer.global_rank
        if rank == 0:
            store.remove_leftovers()
        loader = bench.train_loader(rank, world)
        if found is not None:
            loader.load_state_dict(found[0]["loader"])
        steps = Steps(loader, total * micro_batches)
        averaging = Averaging(limits.ema_decay) if limits.ema_decay else None
        every = limits.validate_every_n_steps or steps_per_epoch
        validation = Validation(bench.eval_loader("val", rank, world), every, averaging)
        checkpoints = Checkpoints(
            store,
            loader,
            found[0] if found is not None else None,
            f"val/{bench.task.monitor}",
            bench.task.mode,
            limits.checkpoint.every_n_steps,
            limits.patience,
            averaging,
        )
        acting: list[StepCallback] = [
            *([averaging] if averaging is not None else []),
            MetricsLog(limits.log_every_n_steps, steps, limits.global_batch_size),
            validation,
            checkpoints,
            ProgressLine(job.what),
            Stop(validation, checkpoints, limits.time_budget_s),
            *([Heartbeat(beat)] if beat is not None else []),
        ]
        trainer.callbacks.append(Boundary(acting))
        module.train()
        faster = accelerated(model, compiled=limits.compile, recomputed=limits.recompute_activations)
        with INTERRUPTS.deferred(), faster:
            trainer.fit(module, steps)
    if world == 1:
        load_best(model, folder)
        model.cpu().float()  # it was trained in bfloat16 with bf16_true; what follows works on 32-bit floats
    return Fitted(
        metrics=checkpoints.best,
        steps=trainer.global_step,
        precision=effective_precision(trainer),
        device=str(trainer.strategy.root_device.type if world > 1 else trainer.strategy.root_device),
    )


def total_steps(max_epochs: int, max_steps: int, steps_per_epoch: int, length: float = 1.0) -> int:
    """Return how many optimizer steps a training has: what its limits (-1: none) allow, times `length`, at least 1."""
    allowed = [n for n in (max_epochs * steps_per_epoch, max_steps) if n >= 0]
    return max(1, ceil(min(allowed) * length))


def effective_precision(trainer: pl.Trainer) -> str:
    """Return the precision that was used, which is not always the one asked for (fp16 falls to bf16 on a CPU)."""
    plugin = trainer.precision_plugin
    asked = str(plugin.precision)
    if asked == "16-mixed" and trainer.strategy.root_device.type == "cpu":
        return "bf16-mixed"
    return asked


def _scaled(optimizer: Any, factor: float) -> Any:
    def make(groups: Any) -> torch.optim.Optimizer:
        made = optimizer(groups)
        for group in made.param_groups:
            group["lr"] *= factor
        return made

    return make


@contextmanager
def _quiet_lightning() -> Any:
    """Lightning's hints about its own defaults go to the log file only when they are warnings."""
    names = (
        "pytorch_lightning",
        "lightning_fabric",
        "pytorch_lightning.utilities.rank_zero",
        "lightning.pytorch",
    )
    before = {n: logging.getLogger(n).level for n in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You defined a `validation_step`")  # the callback calls it
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
