"""One training of one model: used by the stage `train`, and by compression passes to fine-tune."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import nn

from framework.config.components import build, build_set
from framework.config.mixture import mixed_in
from framework.data.batch_transforms import BatchTransform, RandomTransform
from framework.data.dataset import cache_of
from framework.data.loader import EvalLoader, Resumable, ShardLoader, Steps
from framework.data.mixing import MixedLoader
from framework.record.experiment import Experiment
from framework.record.interrupts import INTERRUPTS

from .callbacks import Checkpoints, MetricsLog, ProgressLine, StopOnSignal, Validation
from .module import LogMetrics, TrainingModule, scalars
from .tasks import Task, forward

Transforms = Sequence[BatchTransform | RandomTransform]


@dataclass(frozen=True)
class Fitted:
    """What a training gave: validation metrics of the best weights, the precision that was really used."""

    metrics: dict[str, float]
    steps: int
    precision: str
    device: str


@dataclass
class Workbench:
    """The parts of an experiment that training and judging models need, built once.

    Args:
        experiment: config and record.
        dataset: folder or URL of the dataset version.
    """

    experiment: Experiment
    dataset: Path | str

    def __post_init__(self) -> None:
        cfg = self.experiment.config
        self.task: Task = build(cfg.task, "task")
        self.transforms: Transforms = list(build_set(cfg.data.batch_transforms, "data.batch_transforms").values())

    @property
    def config(self) -> DictConfig:
        """The experiment's config."""
        return self.experiment.config

    def train_loader(self, rank: int = 0, world_size: int = 1) -> Resumable:
        """Return a fresh loader of the train split, with what `data.mix` adds to it."""
        main = self._shards(self.config.data, self.dataset, self.transforms, rank, world_size)
        parts = mixed_in(self.config.data)
        if not parts:
            return main
        loaders = [main]
        for name, part in parts.items():
            path = self.experiment.record["data"]["mix"][name]["path"]
            transforms = build_set(part.batch_transforms, f"data.mix.{name}.batch_transforms")
            loaders.append(self._shards(part, path, list(transforms.values()), rank, world_size))
        weights = [self.config.data.weight, *(part.weight for part in parts.values())]
        return MixedLoader(loaders, weights, self.config.seed)

    def _shards(
        self, data: DictConfig, location: Path | str, transforms: Transforms, rank: int, world_size: int
    ) -> ShardLoader:
        cfg = self.config
        return ShardLoader(
            location,
            "train",
            cfg.trainer.global_batch_size,
            rank=rank,
            world_size=world_size,
            micro_batch=cfg.trainer.micro_batch_size,
            seed=cfg.seed,
            lanes=data.loader.lanes,
            window_bytes=data.loader.window_bytes,
            threads=data.loader.threads,
            transforms=transforms,
            cache=cache_of(data),
        )

    def eval_loader(self, split: str, rank: int = 0, world_size: int = 1) -> EvalLoader:
        """Return a loader of a split in stored order."""
        size = self.config.data.loader.eval_batch_size
        return EvalLoader(
            self.dataset,
            split,
            size,
            rank=rank,
            world_size=world_size,
            transforms=self.transforms,
            cache=cache_of(self.config.data),
        )

    def example(self, rows: int = 2) -> tuple[torch.Tensor, ...]:
        """Return model inputs made of the first rows of the train split."""
        loader = EvalLoader(self.dataset, "train", rows, transforms=self.transforms, cache=cache_of(self.config.data))
        batch = next(iter(loader))
        return tuple(batch[name] for name in self.task.inputs)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        """Return a model's scalar metrics on a split, as `split/name`, and its matrices by name."""
        metrics = self.task.metrics()
        was_training = model.training
        if not isinstance(model, torch.fx.GraphModule):
            model.eval()
        for batch in self.eval_loader(split):
            self.task.update(metrics, forward(model, self.task, batch), batch)
        if was_training and not isinstance(model, torch.fx.GraphModule):
            model.train()
        matrices = {n: v for n, v in metrics.compute().items() if v.numel() > 1}
        return scalars(metrics, split), matrices

    def seed(self) -> None:
        """Seed every generator from the config, and set the number of threads."""
        pl.seed_everything(self.config.seed, verbose=False)
        if self.config.trainer.threads:
            torch.set_num_threads(self.config.trainer.threads)


def fit(
    bench: Workbench,
    model: nn.Module,
    folder: Path,
    *,
    what: str,
    log: LogMetrics,
    length: float = 1.0,
    learning_rate_scale: float = 1.0,
    resume: bool = False,
) -> Fitted:
    """Train a model in place; on return it holds the best weights.

    Args:
        bench: config, data and task.
        model: what is trained.
        folder: for checkpoints.
        what: shown beside the progress.
        log: receives metrics.
        length: how long to train, as a share of `trainer.max_epochs` and `trainer.max_steps`.
        learning_rate_scale: factor on the optimizer's learning rate.
        resume: go on from `folder/last.ckpt` where there is one.

    Raises:
        Preempted: when a signal asked to stop; the state is saved.
        UserError: when the loss is not finite.
    """
    cfg = bench.config
    limits, world = cfg.trainer, cfg.strategy.devices * cfg.strategy.num_nodes
    local_batch = limits.global_batch_size // world
    micro_batches = local_batch // (limits.micro_batch_size or local_batch)
    steps_per_epoch = len(bench.train_loader(0, world)) // micro_batches
    total = total_steps(limits.max_epochs, limits.max_steps, steps_per_epoch, length)
    optimizer = build(cfg.optimizer, "optimizer")
    module = TrainingModule(
        model,
        bench.task,
        _scaled(optimizer, learning_rate_scale) if learning_rate_scale != 1.0 else optimizer,
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
        rank, world = trainer.global_rank, trainer.world_size
        checkpoints = Checkpoints(folder, f"val/{bench.task.monitor}", bench.task.mode)
        trainer.callbacks += [  # they act in this order
            MetricsLog(limits.log_every_n_steps),
            Validation(bench.eval_loader("val", rank, world), limits.validate_every_n_steps or steps_per_epoch),
            checkpoints,
            ProgressLine(what),
            StopOnSignal(checkpoints),
        ]
        last = folder / "last.ckpt"
        module.train()
        with INTERRUPTS.deferred():
            trainer.fit(
                module,
                Steps(bench.train_loader(rank, world), total * micro_batches),
                ckpt_path=last if resume and last.exists() else None,
                weights_only=False,
            )
    checkpoints.load_best(module)
    model.cpu().float()  # it was trained in bfloat16 with bf16_true; what follows works on 32-bit floats
    return Fitted(
        metrics=checkpoints.best,
        steps=trainer.global_step,
        precision=effective_precision(trainer),
        device=str(trainer.strategy.root_device),
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
