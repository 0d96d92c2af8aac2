"""How several processes train one model: Lightning's strategies, made to run on CPUs (gloo) as on GPUs (NCCL).

`strategy.plugin` in a config names one of these functions. What a strategy must give beyond Lightning's own contract
is in `state.py`: the whole state of a training, by parameter name, whatever way it is spread over the ranks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from fnmatch import fnmatch
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from framework.errors import UserError

from .blocks import blocks_of, tensor_parallel_plan

TIMEOUT_S = 1800.0
CPU_BUCKET = 4_000_000  # elements


def ddp(timeout_s: float = TIMEOUT_S, find_unused_parameters: bool = False) -> DDPStrategy:
    """Every rank has the whole model, and gradients are averaged (Li et al., VLDB 2020).

    Args:
        timeout_s: seconds after which a collective that not all ranks have joined is an error.
        find_unused_parameters: for models that do not use all parameters in every step.
    """
    return DDPStrategy(
        timeout=timedelta(seconds=timeout_s),
        find_unused_parameters=find_unused_parameters,
        gradient_as_bucket_view=True,
    )


def fsdp2(
    timeout_s: float = TIMEOUT_S, tensor_parallel: int = 1, wrap: Sequence[str] | None = None
) -> ModelParallelStrategy:
    """Parameters, gradients and optimizer state are spread over the ranks, block by block (PyTorch's `fully_shard`).

    Args:
        tensor_parallel: so many neighbouring ranks share the work of each layer (Shoeybi et al., "Megatron-LM", 2019).
        timeout_s: seconds after which a collective that not all ranks have joined is an error.
        wrap: names (globs) of modules whose parameters are gathered together; None for the elements of module lists.
    """
    strategy = ModelParallelStrategy(
        data_parallel_size=int(os.environ.get("WORLD_SIZE", "1")) // tensor_parallel,
        tensor_parallel_size=tensor_parallel,
        timeout=timedelta(seconds=timeout_s),
    )
    strategy.wrap = wrap  # for `shard`, once there is a model
    return strategy


def deepspeed(
    stage: int = 2,
    offload_optimizer: bool = False,
    offload_parameters: bool = False,
    nvme_path: str | None = None,
    timeout_s: float = TIMEOUT_S,
    config: Mapping[str, Any] | None = None,
) -> DeepSpeedStrategy:
    """DeepSpeed's ZeRO (Rajbhandari et al., SC 2020).

    Args:
        stage: what is spread over the ranks: 1 optimizer state; 2 gradients, too; 3 parameters, too.
        offload_optimizer, offload_parameters: keep these in the main memory.
        nvme_path: keep what is offloaded on a disk there instead.
        timeout_s: seconds after which a collective that not all ranks have joined is an error.
        config: entries of DeepSpeed's own JSON, which win over those made here.

    Raises:
        UserError: when a disk is wanted, and what DeepSpeed needs for it is not there.
    """
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if nvme_path:
        from deepspeed.ops.op_builder import AsyncIOBuilder

        if not AsyncIOBuilder().is_compatible():
            raise UserError(
                "strategy.plugin.nvme_path: DeepSpeed compiles its access to disks; install libaio's headers and a "
                "compiler (Debian: libaio-dev g++), or leave it null, for the main memory"
            )
    device = "nvme" if nvme_path else "cpu"
    zero: dict[str, Any] = {"stage": stage}
    if on_cpu:  # its defaults, made for GPUs, allocate gigabytes in every step
        zero |= {"reduce_bucket_size": CPU_BUCKET, "allgather_bucket_size": CPU_BUCKET}
    for name, wanted in (("offload_optimizer", offload_optimizer), ("offload_param", offload_parameters)):
        if wanted:
            zero[name] = {"device": device, **({"nvme_path": nvme_path} if nvme_path else {})}
    given = dict(config or {})
    entries = {
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **given,
        "zero_optimization": {**zero, **given.get("zero_optimization", {})},
    }
    return (_DeepSpeedOnCPU if on_cpu else DeepSpeedStrategy)(
        config=entries, timeout=timedelta(seconds=timeout_s), logging_level=30
    )


class _DeepSpeedOnCPU(DeepSpeedStrategy):
    """Lightning refuses CPUs; DeepSpeed itself does not."""

    def setup_environment(self) -> None:
        import deepspeed.comm.torch  # noqa: F401

        # a kernel for ranks that share memory, which would be compiled at every start; gloo does the same work
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        from lightning_fabric.utilities.seed import reset_seed

        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", self.local_rank)


def shard(model: nn.Module, mesh: DeviceMesh, precision: str, wrap: Sequence[str] | None = None) -> None:
    """Share out a model in place: the layers of its plan by tensor parallelism, then all by `fully_shard`.

    That is applied to the modules that `wrap` names, or each element of its module lists, then to the rest.

    Args:
        model: the network.
        mesh: Lightning's, with the axes `data_parallel` and `tensor_parallel`.
        precision: Lightning's word; with `bf16-mixed` parameters are gathered in bfloat16, and gradients reduced in
            float32.
        wrap: see `fsdp2`.

    Raises:
        UserError: when tensor parallelism is wanted, and the model has no plan for it; when `wrap` names nothing.
    """
    if mesh["tensor_parallel"].size() > 1:
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        styles = {"columns": ColwiseParallel, "rows": RowwiseParallel}
        plan = {name: styles[style]() for name, style in tensor_parallel_plan(model).items()}
        parallelize_module(model, mesh["tensor_parallel"], plan)
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy()
    if precision == "bf16-mixed":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in _wrapped(model, wrap):
        if block is not model:
            fully_shard(block, mesh=mesh["data_parallel"], mp_policy=policy)
    fully_shard(model, mesh=mesh["data_parallel"], mp_policy=policy)


def _wrapped(model: nn.Module, wrap: Sequence[str] | None) -> list[nn.Module]:
    """Return the modules whose parameters are gathered together, inner ones first."""
    if wrap is None:
        return blocks_of(model)
    modules = dict(model.named_modules())
    found = [module for name, module in modules.items() if any(fnmatch(name, pattern) for pattern in wrap)]
    if not found:
        raise UserError(f"strategy.plugin.wrap: no module is called so; there are {', '.join(filter(None, modules))}")
    return found[::-1]
