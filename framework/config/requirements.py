"""Constraints across groups, declared beside the component they concern.

Any node of a config may carry `_requires_`, a mapping from a config key to what that key must be:

    _requires_:
      strategy.devices: {at_least: 2, because: ddp spreads a batch over processes, instead: strategy=single}
      machine.accelerator: {one_of: [cuda], because: fp16 needs a GPU, instead: precision=bf16}
      compress: {lacks: [static_int8], because: this runtime has no int8 kernels}
      package.onnxruntime: {extra: onnx}
      compress: {ends_with: static_int8}
      model._target_: {none_of: [mine.Transformer], unless: {compress: {lacks: [static_int8]}}}

A rule with `unless` holds only where those other requirements are not met. Besides config keys there are facts:
`machine.gpus`, `machine.cpus`, `machine.accelerator`, `machine.compute_capability`, `run.accelerator` (what training
will use), `run.world_size` (processes in all) and `package.<name>` (an import that must be there).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from framework.errors import did_you_mean

from .machine import has_package, this_machine
from .world import world_size

REQUIRES = "_requires_"
_VERBS = ("one_of", "none_of", "at_least", "at_most", "has", "lacks", "ends_with", "extra")


def facts(cfg: DictConfig) -> dict[str, Any]:
    """Return the facts that requirements may name beside config keys."""
    machine = this_machine()
    wanted = plain(cfg.strategy.accelerator)
    return {
        "machine.gpus": machine.gpus,
        "machine.cpus": machine.cpus,
        "machine.accelerator": machine.accelerator,
        "machine.compute_capability": machine.compute_capability,
        "run.accelerator": machine.accelerator if wanted == "auto" else wanted,
        "run.world_size": world_size(cfg),
    }


def unmet(cfg: DictConfig, owner: str, requires: Mapping[str, Any]) -> Iterator[str]:
    """Yield one sentence for each requirement of the node `owner` that the config does not meet."""
    known = facts(cfg)
    for key, rule in requires.items():
        if not isinstance(rule, Mapping) or not set(rule) & set(_VERBS):
            verbs = ", ".join(_VERBS)
            yield f"`{owner}.{REQUIRES}.{key}` must be a mapping with one of {verbs}"
            continue
        if key.startswith("package."):
            package = key.removeprefix("package.")
            if not has_package(package):
                yield f"needs the package `{package}`: pip install 'declarative-experiments[{rule['extra']}]'"
            continue
        excuse = rule.get("unless")
        if excuse and not any(_of_key(cfg, known, other, wanted) for other, wanted in excuse.items()):
            continue
        if complaint := _of_key(cfg, known, key, rule):
            because = f" ({rule['because']})" if rule.get("because") else ""
            instead = f"; use {rule['instead']}" if rule.get("instead") else ""
            yield f"{complaint}{because}{instead}"


def _of_key(cfg: DictConfig, known: Mapping[str, Any], key: str, rule: Mapping[str, Any]) -> str | None:
    try:
        value = known[key] if key in known else OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None  # reported as an interpolation that does not resolve
    return _complaint(key, plain(value), rule)


def _complaint(key: str, value: Any, rule: Mapping[str, Any]) -> str | None:
    if "one_of" in rule and value not in rule["one_of"]:
        options = ", ".join(map(str, rule["one_of"]))
        return f"needs `{key}` to be {options}, and it is {value}{did_you_mean(str(value), list(rule['one_of']))}"
    if "none_of" in rule and value in rule["none_of"]:
        return f"does not work with `{key}` = {value}"
    if "at_least" in rule and not (value is not None and value >= rule["at_least"]):
        return f"needs `{key}` to be at least {rule['at_least']}, and it is {value}"
    if "at_most" in rule and not (value is not None and value <= rule["at_most"]):
        return f"needs `{key}` to be at most {rule['at_most']}, and it is {value}"
    names = set(value or ()) if isinstance(value, (Mapping, list)) else set()
    if "has" in rule and (absent := [n for n in rule["has"] if n not in names]):
        return f"needs `{key}` to hold {', '.join(absent)}; it holds {', '.join(sorted(names)) or 'nothing'}"
    if "ends_with" in rule and isinstance(value, Mapping) and list(value)[-1] != rule["ends_with"]:
        return f"needs to be the last of `{key}`, and {list(value)[-1]} is"
    if "lacks" in rule and (present := [n for n in rule["lacks"] if n in names]):
        return f"does not work with {key} {', '.join(present)}"
    return None


def plain(value: Any) -> Any:
    """Return a config value as plain Python: enums as their names, containers as dict and list."""
    if isinstance(value, (DictConfig, ListConfig)):
        value = OmegaConf.to_container(value, resolve=False)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list) else value
