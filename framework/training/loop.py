"""The training of one rank: Lightning's Trainer, with what happens at the boundary of a step (`callbacks.py`)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from omegaconf import DictConfig
from torch import nn

from framework.config.components import as_plain, build
from framework.config.world import data_ranks, world_size
from framework.data.loader import Steps
from framework.record.interrupts import INTERRUPTS

from .acceleration import accelerated
from .anomalies import Anomalies, Guard
from .averaging import Averaging
from .callbacks import Heartbeat, ProgressLine, Validation
from .checkpoints import CheckpointFolder, load_best
from .flops import peak_flops, training_flops
from .groups import parameter_groups
from .job import Fitted, Job, LogMetrics
from .module import TrainingModule
from .rates import MetricsLog
from .saving import Checkpoints
from .step import Boundary, StepCallback
from .stopping import Stop
from .workbench import Workbench


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
    limits = cfg.trainer
    plan = Plan.of(bench, job)
    store = CheckpointFolder(
        folder, limits.checkpoint.keep, limits.checkpoint.keep_every_n_steps, limits.checkpoint.in_background
    )
    found = store.newest() if job.resume else None
    if found is not None:
        model.load_state_dict(found[1], strict=False)
    with _quiet_lightning():
        trainer = _trainer(cfg, plan, folder)
    rank = trainer.global_rank
    share = rank // cfg.strategy.tensor_parallel
    if rank == 0:
        store.remove_leftovers()
    loader = bench.train_loader(share, plan.shares)
    if found is not None:
        loader.load_state_dict(found[0]["loader"])
    anomalies = Anomalies(
        Guard(limits.anomalies.spike),
        loader,
        partial(bench.train_loader, share, plan.shares),
        bench.experiment.folder / "anomalies",
        limits.anomalies.max_skipped,
    )
    optimizer = build(cfg.optimizer, "optimizer")
    module = TrainingModule(
        model,
        bench.task,
        parameter_groups(model, as_plain(limits.parameter_groups)),
        _scaled(optimizer, job.learning_rate_scale) if job.learning_rate_scale != 1.0 else optimizer,
        build(cfg.scheduler, "scheduler") if cfg.scheduler else None,
        log,
        plan.steps_per_epoch,
        anomalies,
    )
    steps = Steps(loader, plan.steps * plan.micro_batches)
    averaging = Averaging(limits.ema_decay) if limits.ema_decay else None
    every = limits.validate_every_n_steps or plan.steps_per_epoch
    validation = Validation(bench.eval_loader("val", share, plan.shares), every, averaging)
    checkpoints = Checkpoints(
        store,
        loader,
        found[0] if found is not None else None,
        f"val/{bench.task.monitor}",
        bench.task.mode,
        limits.checkpoint.every_n_steps,
        limits.patience,
        averaging,
        anomalies,
    )
    flops = training_flops(model, bench.example())
    peak = peak_flops(
        trainer.strategy.root_device, cfg.precision.lightning, cfg.precision.tf32, bool(cfg.precision.layers)
    )
    acting: list[StepCallback] = [
        anomalies,
        *([averaging] if averaging is not None else []),
        MetricsLog(limits.log_every_n_steps, steps, limits.global_batch_size, checkpoints, flops, peak),
        validation,
        checkpoints,
        ProgressLine(job.what),
        Stop(validation, checkpoints, limits.time_budget_s),
        *([Heartbeat(beat)] if beat is not None else []),
    ]
    trainer.callbacks.append(Boundary(acting))
    module.train()
    layers = build(cfg.precision.layers, "precision.layers").applied(model) if cfg.precision.layers else nullcontext()
    faster = accelerated(model, compiled=limits.compile, recomputed=limits.recompute_activations)
    with _quiet_lightning(), INTERRUPTS.deferred(), layers, faster, _tensor_float_32(cfg.precision.tf32):
        trainer.fit(module, steps)
    if trainer.world_size == 1:
        load_best(model, folder)
        model.cpu().float()  # it was trained in bfloat16 with bf16_true; what follows works on 32-bit floats
    return Fitted(
        metrics=checkpoints.best,
        steps=trainer.global_step,
        skipped=anomalies.skipped,
        precision=effective_precision(trainer, cfg.precision),
        device=str(trainer.strategy.root_device.type if trainer.world_size > 1 else trainer.strategy.root_device),
    )


@dataclass(frozen=True)
class Plan:
    """How long a training is, and how its batches are cut.

    Args:
        shares: of each global batch, one for each rank that takes rows of its own.
        micro_batches: of each share.
        steps_per_epoch, steps: optimizer steps of an epoch, and in all.
    """

    shares: int
    micro_batches: int
    steps_per_epoch: int
    steps: int

    @classmethod
    def of(cls, bench: Workbench, job: Job) -> Plan:
        """Return the plan of a training."""
        limits, shares = bench.config.trainer, data_ranks(bench.config)
        rows = limits.global_batch_size // shares
        micro_batches = rows // (limits.micro_batch_size or rows)
        per_epoch = len(bench.train_loader(0, shares)) // micro_batches
        total = total_steps(limits.max_epochs, limits.max_steps, per_epoch, job.length)
        return cls(shares, micro_batches, per_epoch, total)


def _trainer(cfg: DictConfig, plan: Plan, folder: Path) -> pl.Trainer:
    strategy = cfg.strategy
    return pl.Trainer(
        accelerator=strategy.accelerator.value,
        devices=strategy.devices,
        num_nodes=strategy.num_nodes,
        strategy=build(strategy.plugin, "strategy.plugin") if strategy.plugin else "auto",
        plugins=[TorchElasticEnvironment() if world_size(cfg) > 1 else LightningEnvironment()],
        precision=cfg.precision.lightning,
        max_epochs=1,
        max_steps=plan.steps,
        accumulate_grad_batches=plan.micro_batches,
        gradient_clip_val=cfg.trainer.gradient_clip,
        deterministic="warn" if cfg.trainer.deterministic else None,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )


@contextmanager
def _tensor_float_32(wanted: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if wanted else "highest")
    torch.backends.cudnn.allow_tf32 = wanted
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def total_steps(max_epochs: int, max_steps: int, steps_per_epoch: int, length: float = 1.0) -> int:
    """Return how many optimizer steps a training has: what its limits (-1: none) allow, times `length`, at least 1."""
    allowed = [n for n in (max_epochs * steps_per_epoch, max_steps) if n >= 0]
    return max(1, ceil(min(allowed) * length))


def effective_precision(trainer: pl.Trainer, asked: DictConfig) -> str:
    """Return the precision that was used, which is not always the one asked for (fp16 falls to bf16 on a CPU)."""
    used = str(trainer.precision_plugin.precision)
    if used == "16-mixed" and trainer.strategy.root_device.type == "cpu":
        used = "bf16-mixed"
    return used + (" with tf32" if asked.tf32 else "") + (f" with {asked.name} layers" if asked.layers else "")


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
