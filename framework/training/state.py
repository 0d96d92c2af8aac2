"""The whole state of a training, by parameter name: gathered from all ranks, and spread over them again.

It looks the same whatever the strategy: so a training goes on with another strategy, or another number of ranks.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DeepSpeedStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from .module import TrainingModule

State = dict[str, Any]
Weights = dict[str, Tensor]


def gather_weights(trainer: pl.Trainer, module: TrainingModule) -> Weights:
    """Return the model's full weights in main memory, a copy; every rank must call it, and rank 0 has them."""
    if isinstance(trainer.strategy, DeepSpeedStrategy):
        return _deepspeed_weights(module.model)
    options = StateDictOptions(full_state_dict=True, cpu_offload=trainer.world_size > 1)
    found = get_model_state_dict(module.model, options=options)
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in found.items()}


def gather_optimizer(trainer: pl.Trainer, module: TrainingModule) -> State:
    """Return the optimizer's full state, `state` by parameter name and `param_groups`; see `gather_weights`."""
    if isinstance(trainer.strategy, DeepSpeedStrategy):
        return _deepspeed_optimizer(trainer, module)
    options = StateDictOptions(full_state_dict=True, cpu_offload=trainer.world_size > 1)
    return _copied(get_optimizer_state_dict(module.model, trainer.optimizers, options=options))


def spread_optimizer(trainer: pl.Trainer, module: TrainingModule, state: State) -> None:
    """Give every rank its part of an optimizer's full state, which every rank has read."""
    if isinstance(trainer.strategy, DeepSpeedStrategy):
        _spread_deepspeed(trainer, module, state)
        return
    groups = trainer.optimizers[0].param_groups
    together = [group.get("foreach") for group in groups]  # how parameters are updated is this strategy's own affair
    options = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(module.model, trainer.optimizers, _copied(state), options=options)
    for group, own in zip(groups, together, strict=True):
        if "foreach" in group:
            group["foreach"] = own


def gather_random(trainer: pl.Trainer) -> list[State]:
    """Return the states of every rank's random generators, in order of rank."""
    kind, key, *rest = np.random.get_state(legacy=True)
    own: State = {
        "python": random.getstate(),
        "numpy": (kind, np.asarray(key).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    if trainer.world_size == 1:
        return [own]
    everyone: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(everyone, own)
    return everyone


def spread_random(trainer: pl.Trainer, states: list[State]) -> None:
    """Put this rank's random generators back; a rank that was not there keeps those it has."""
    if trainer.global_rank >= len(states):
        return
    own = states[trainer.global_rank]
    version, words, gauss = own["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(own["numpy"])
    torch.set_rng_state(own["torch"])
    if own["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(own["cuda"])


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, (list, tuple)) else value


# -- DeepSpeed ----------------------------------------------------------------------------------------------------


def _deepspeed_weights(model: nn.Module) -> Weights:
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    weights = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            weights[name] = safe_get_full_fp32_param(parameter).detach().cpu().clone()
        else:
            with GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                weights[name] = parameter.detach().float().cpu().clone()
    persistent = model.state_dict().keys()
    buffers = {n: b.detach().cpu().clone() for n, b in model.named_buffers() if n in persistent}
    return {**weights, **buffers}


def _deepspeed_optimizer(trainer: pl.Trainer, module: TrainingModule) -> State:
    from deepspeed.utils import safe_get_full_optimizer_state

    wrapped: Any = trainer.optimizers[0]
    flat = _flat_states(wrapped)
    state: State = {}
    for name, parameter in module.model.named_parameters():
        if parameter.requires_grad:
            state[name] = {
                key: value.clone() if value.ndim == 0 else safe_get_full_optimizer_state(parameter, key).cpu().clone()
                for key, value in flat.items()
            }
    groups = [{**{k: v for k, v in g.items() if k != "params"}} for g in wrapped.param_groups]
    named = [{**g, "params": list(own.names)} for g, own in zip(groups, module.groups, strict=True)]
    return {"state": state, "param_groups": named}


def _spread_deepspeed(trainer: pl.Trainer, module: TrainingModule, saved: State) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state

    wrapped: Any = trainer.optimizers[0]
    _flat_states(wrapped, saved)
    for name, parameter in module.model.named_parameters():
        for key, value in saved["state"].get(name, {}).items():
            if isinstance(value, Tensor) and value.ndim:
                safe_set_full_optimizer_state(parameter, value.float(), key)
    by_name = {name: group for group in saved["param_groups"] for name in group["params"]}
    for group, own in zip(wrapped.param_groups, module.groups, strict=True):
        group.update({k: v for k, v in by_name[own.names[0]].items() if k != "params"})


def _flat_states(wrapped: Any, saved: State | None = None) -> dict[str, Tensor]:
    """Return the state of one of a ZeRO optimizer's flat partitions, made first from a saved one's keys where given."""
    base: torch.optim.Optimizer = wrapped.optimizer
    names = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "fp32_groups_flat_partition")
    flats: list[Tensor] = next(getattr(wrapped, name) for name in names if hasattr(wrapped, name))
    if saved is not None and saved["state"]:
        sample = next(iter(saved["state"].values()))
        for flat in flats:
            base.state[flat] = {k: torch.zeros_like(flat) if v.ndim else v.clone() for k, v in sample.items()}
    if hasattr(wrapped, "_lazy_init_hp_params_optimizer_state"):
        wrapped._hp_optimizer_states_linked = False  # it is set when the first group has a state, and the others none
        wrapped._lazy_init_hp_params_optimizer_state()
    return dict(base.state[flats[0]])
