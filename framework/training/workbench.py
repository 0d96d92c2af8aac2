"""The parts of an experiment that training and judging models need."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn

from framework.config.components import build, build_set
from framework.config.mixture import mixed_in
from framework.data.batch_transforms import BatchTransform, RandomTransform
from framework.data.dataset import cache_of
from framework.data.loader import EvalLoader, Resumable, ShardLoader
from framework.data.mixing import MixedLoader
from framework.record.experiment import Experiment

from .tasks import Task, forward, scalars

Transforms = Sequence[BatchTransform | RandomTransform]


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
        batch = self.eval_loader("train").rows(0, rows)
        return tuple(batch[name].contiguous() for name in self.task.inputs)

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

    def seed(self, rank: int = 0) -> None:
        """Seed every generator from the config, each rank's in its own way, and set the number of threads."""
        seed = self.config.seed + rank
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        os.environ["PL_GLOBAL_SEED"] = str(seed)  # to which Lightning's strategies set them again
        if self.config.trainer.threads:
            torch.set_num_threads(self.config.trainer.threads)
