"""How many processes train, and how many of them take rows of their own."""

from __future__ import annotations

from omegaconf import DictConfig


def world_size(cfg: DictConfig) -> int:
    """Return the number of processes in all."""
    return int(cfg.strategy.devices * cfg.strategy.num_nodes)


def data_ranks(cfg: DictConfig) -> int:
    """Return how many shares a global batch is cut into: processes that share a layer's work take the same rows."""
    return world_size(cfg) // int(cfg.strategy.tensor_parallel)
