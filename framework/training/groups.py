"""Which parameters an optimizer treats alike: matrices, embeddings, vectors; and those that a rule names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor

from framework.errors import UserError

RULE_NAMES = "parameters"


@dataclass(frozen=True)
class Group:
    """Parameters by name, with the optimizer's options that differ from its defaults."""

    names: tuple[str, ...]
    options: Mapping[str, Any]


def parameter_groups(model: nn.Module, rules: Mapping[str, Mapping[str, Any]] | None = None) -> list[Group]:
    """Group the parameters that are trained.

    Norms, biases and other vectors are not decayed. Embeddings are marked by `hidden: False`, for optimizers that
    treat the matrices of hidden layers in a way of their own (`Muon`).

    Args:
        model: the network, before it is spread over ranks.
        rules: by a name of their own: `parameters`, globs of names, and options of the optimizer for those; where
            several rules name a parameter, the first one holds.

    Raises:
        UserError: when a rule names no parameter.
    """
    given = dict(rules or {})
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    groups: dict[tuple[tuple[str, Any], ...], list[str]] = {}
    met = set()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        options: dict[str, Any] = {} if parameter.ndim >= 2 else {"weight_decay": 0.0}
        if id(parameter) in embeddings:
            options["hidden"] = False
        for title, rule in given.items():
            if any(fnmatch(name, pattern) for pattern in rule[RULE_NAMES]):
                met.add(title)
                options |= {k: v for k, v in rule.items() if k != RULE_NAMES}
                break
        groups.setdefault(tuple(sorted(options.items())), []).append(name)
    for title in given.keys() - met:
        names = ", ".join(n for n, _ in model.named_parameters())
        raise UserError(f"trainer.parameter_groups.{title}: no trained parameter is called so; there are {names}")
    return [Group(tuple(names), dict(options)) for options, names in groups.items()]


def with_parameters(model: nn.Module, groups: list[Group]) -> list[dict[str, Any]]:
    """Return groups as optimizers take them; parameters of several device meshes are updated one by one."""
    known, found = dict(model.named_parameters()), []
    for group in groups:
        parameters = [known[name] for name in group.names]
        meshes = {p.device_mesh if isinstance(p, DTensor) else None for p in parameters}
        together = {"foreach": False} if len(meshes) > 1 else {}
        found.append({"params": parameters, **group.options, **together})
    return found
