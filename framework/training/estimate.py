"""`check=shapes`: the model built without memory, one batch's shapes pushed through, and what training will need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from framework.config.components import as_plain, build, build_set
from framework.config.world import data_ranks
from framework.data.batch_transforms import Batch
from framework.data.manifest import offsets_of, values_of
from framework.errors import UserError
from framework.record.console import aligned, bytes_text

from .groups import parameter_groups, with_parameters
from .low_rank import add_low_rank
from .tasks import Task, forward


@dataclass(frozen=True)
class Estimate:
    """What one process needs for a training step.

    Args:
        inputs, outputs: shapes of the model's inputs by name, and of its output.
        parameters: number of parameters.
        weights, gradients, optimizer, activations: bytes; activations are what autograd keeps for the backward pass.
    """

    inputs: dict[str, tuple[int, ...]]
    outputs: tuple[int, ...]
    parameters: int
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate(config: DictConfig) -> Estimate:
    """Estimate the memory of a training step in one process, for one micro-batch.

    Nothing of the model's size is allocated: parameters and activations live on PyTorch's meta device.

    Raises:
        UserError: when the batch's shapes do not go through the model, or the loss does not take its output.
    """
    rows = config.trainer.micro_batch_size or config.trainer.global_batch_size // data_ranks(config)
    task: Task = build(config.task, "task")
    batch = _batch(config, rows)
    missing = [name for name in task.inputs if name not in batch]
    if missing:
        raise UserError(f"task.inputs: there is no field `{missing[0]}` in a batch, only {', '.join(batch)}")
    with torch.device("meta"):
        model: nn.Module = build(config.model, "model")
    if config.trainer.lora.rank is not None:
        add_low_rank(model, **as_plain(config.trainer.lora))
    model.to("meta")
    if config.precision.lightning.endswith("-true"):
        model.to(_dtype(config.precision.lightning))
        batch = {k: v.to(_dtype(config.precision.lightning)) if v.is_floating_point() else v for k, v in batch.items()}
    kept: dict[int, Tensor] = {}
    own = {id(p.untyped_storage()) for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor.untyped_storage()) not in own:
            kept[id(tensor.untyped_storage())] = tensor
        return tensor

    mixed = config.precision.lightning.endswith("-mixed")
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
                outputs = forward(model, task, batch)
            task.loss(outputs, batch)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        shapes = ", ".join(f"{n} {list(batch[n].shape)}" for n in task.inputs)
        raise UserError(f"model: {shapes} does not go through {type(model).__name__}: {error}") from error
    weights = [p for p in model.parameters() if p.requires_grad]
    return Estimate(
        inputs={n: tuple(batch[n].shape) for n in task.inputs},
        outputs=tuple(outputs.shape),
        parameters=sum(p.numel() for p in model.parameters()),
        weights=_bytes(list(model.parameters())),
        gradients=_bytes(weights),
        optimizer=_optimizer_bytes(config, model),
        activations=sum(t.untyped_storage().nbytes() for t in kept.values()),
    )


def _batch(config: DictConfig, rows: int) -> Batch:
    """Return a batch as the loader would give it, on the meta device: zeros, through the batch transforms."""
    batch: Batch = {}
    for name, field in as_plain(config.data.fields).items():
        shape, dtype = field["shape"], getattr(torch, field["dtype"])
        if shape[:1] == [None]:  # one value a row
            batch[values_of(name)] = torch.zeros((rows, *shape[1:]), dtype=dtype)
            batch[offsets_of(name)] = torch.arange(rows)[:, None] + torch.arange(2)
        else:
            batch[name] = torch.zeros((rows, *shape), dtype=dtype)
    for transform in build_set(config.data.batch_transforms, "data.batch_transforms").values():
        batch = transform(batch)
    return {name: tensor.to("meta") for name, tensor in batch.items()}


def _optimizer_bytes(config: DictConfig, model: nn.Module) -> int:
    """Return the bytes of an optimizer's state after its first step."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
    groups = with_parameters(model, parameter_groups(model, as_plain(config.trainer.parameter_groups)))
    optimizer: torch.optim.Optimizer = build(config.optimizer, "optimizer")(groups)
    optimizer.step()
    return _bytes([v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor) and v.ndim])


def _dtype(precision: str) -> torch.dtype:
    return {"32-true": torch.float32, "bf16-true": torch.bfloat16, "16-true": torch.float16}[precision]


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def describe_shapes(config: DictConfig) -> str:
    """Return the estimate as a table for people."""
    e = estimate(config)
    inputs = ", ".join(f"{name} {list(shape)}" for name, shape in e.inputs.items())
    rows = [["memory of one process", ""]]
    rows += [[n, bytes_text(getattr(e, n))] for n in ("weights", "gradients", "optimizer", "activations", "total")]
    return (
        f"the config is sound\n"
        f"{inputs} -> output {list(e.outputs)}\n"
        f"{e.parameters:,} parameters, strategy {config.strategy.name}, precision {config.precision.name}\n\n"
        f"{aligned(rows)}"
    )
