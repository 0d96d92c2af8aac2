"""Structured pruning: whole channels go, so that layers are really smaller, then the rest is fine-tuned.

Layers that depend on each other are found with Torch-Pruning's dependency graph (Fang et al., "DepGraph: Towards
Any Structural Pruning", CVPR 2023); channels are ranked by the group's L2 norm.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from framework.errors import UserError
from framework.models.structure import apply_structure, describe_structure, structure_changes
from framework.record.console import say
from framework.training.fit import fit
from framework.training.workbench import Workbench

from .passes import Compressed

_KEPT_AT_LEAST = 4
_MIXING_NODES = ("_UnbindOp", "_SplitOp", "_ConcatOp")


@dataclass(frozen=True)
class StructuredPruning:
    """Removes the weakest channels (of convolutions) and units (of hidden linear layers).

    A group of channels is pruned when exactly one layer writes it, at least one layer reads it, and it is not split
    or concatenated on the way: so neither the model's output nor a residual stream or an attention head is touched.

    Args:
        ratio: share of the channels that goes, in each group; what is left is a multiple of 4.
        layers: names (globs) of the layers whose outputs are pruned; None for all.
        finetune: how long to train afterwards, as a share of the experiment's own training; 0 for not at all.
        learning_rate_scale: factor on `optimizer.lr` while fine-tuning.
    """

    ratio: float = 0.5
    layers: Sequence[str] | None = None
    finetune: float = 0.6
    learning_rate_scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise UserError(f"compress.structured_pruning.ratio: must lie between 0 and 1, and it is {self.ratio}")

    def apply(self, model: nn.Module, bench: Workbench, folder: Path) -> Compressed:
        if isinstance(model, torch.fx.GraphModule):
            raise UserError("compress: structured_pruning cannot follow a pass that quantises; put it before")
        before = describe_structure(model)
        pruned = prune_channels(model, bench.example(), self.ratio, self.layers)
        if not pruned:
            wanted = "" if self.layers is None else f" that match {', '.join(self.layers)}"
            raise UserError(
                f"compress.structured_pruning: {type(model).__name__} has no layers{wanted} whose channels can go; "
                "leave the pass out with compress=none, or name other layers"
            )
        say(f"  structured_pruning: {len(pruned)} groups of channels cut to {1 - self.ratio:.0%}")
        if self.finetune:
            fit(
                bench,
                model,
                folder,
                what="fine-tuning",
                length=self.finetune,
                learning_rate_scale=self.learning_rate_scale,
            )
        return Compressed(model.eval(), {"structure": structure_changes(before, describe_structure(model))})

    def restore(self, model: nn.Module, state: Mapping[str, Any]) -> nn.Module:
        return apply_structure(model, state["structure"])


def prune_channels(
    model: nn.Module, example: Sequence[Tensor], ratio: float, layers: Sequence[str] | None = None
) -> list[str]:
    """Cut channels of a model in place.

    Args:
        model: what is cut.
        example: its inputs, with a batch of at least 2.
        ratio, layers: see `StructuredPruning`.

    Returns:
        the names of the layers whose outputs were cut.
    """
    import torch_pruning as tp

    names = {module: name for name, module in model.named_modules()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it explains what it does with parameters outside of layers: nothing here
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=tuple(example))
    cutters = {nn.Conv2d: tp.prune_conv_out_channels, nn.Linear: tp.prune_linear_out_channels}
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    cut = []
    for group in list(graph.get_all_groups(root_module_types=list(cutters))):
        root = group[0].dep.target.module
        name = names.get(root, "")
        if not _is_free(group, cutters) or (layers is not None and not any(fnmatch(name, g) for g in layers)):
            continue
        width = root.weight.shape[0]
        keep = max(_KEPT_AT_LEAST, round(width * (1 - ratio) / 4) * 4)
        scores = importance(group)
        if keep >= width or scores is None:
            continue
        weakest = torch.argsort(scores)[: width - keep].tolist()
        graph.get_pruning_group(root, cutters[type(root)], idxs=weakest).prune()
        cut.append(name)
    return cut


def _is_free(group: Any, cutters: Mapping[type, Any]) -> bool:
    writers: set[nn.Module] = set()
    readers: set[nn.Module] = set()
    for item in group:
        module = item.dep.target.module
        if any(item.dep.target.name.startswith(kind) for kind in _MIXING_NODES):
            return False
        if isinstance(module, tuple(cutters)):
            wrote = item.dep.handler.__name__ == "prune_out_channels"
            (writers if wrote else readers).add(module)
    return len(writers) == 1 and bool(readers)
