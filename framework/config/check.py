"""The static check: everything that can be known to be wrong with a config before anything runs.

No component is imported: targets are looked up in source files (`signatures`), values are judged against
annotations (`annotations`), and what components demand of each other stands in the config (`requirements`).
All findings are returned at once.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from framework.errors import UserError, did_you_mean

from .annotations import existing_path, misfit
from .definitions import TargetNotFound
from .origins import Origins
from .requirements import REQUIRES, plain, unmet
from .rules import RULES
from .signatures import Parameter, Signature, read_signature

_SPECIAL = {"_target_", "_partial_", "_args_", "_convert_", "_recursive_", REQUIRES}
COMPONENTS = ("model", "task", "optimizer", "scheduler", "data.source", "strategy.plugin", "precision.layers")
COMPONENT_SETS = ("data.transforms", "data.batch_transforms", "compress", "export", "tracker")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: at which key, what, and where that key was set."""

    key: str
    message: str
    origin: str | None = None

    def __str__(self) -> str:
        where = f"  [{self.origin}]" if self.origin else ""
        return f"{self.key}: {self.message}{where}"


def check(cfg: DictConfig, origins: Origins | None = None) -> list[Finding]:
    """Return all findings for a composed config; an empty list means nothing is known to be wrong.

    Args:
        cfg: the composed experiment, without Hydra's own node.
        origins: where its keys were set, to be named in the findings.
    """
    findings = [*_unknown(cfg), *_unresolved(cfg)]
    broken = {f.key for f in findings}
    findings += [f for f in _components(cfg) if f.key not in broken]
    if not broken:
        findings += [Finding(key, message) for rule in RULES for key, message in rule(cfg)]
    if origins is not None:
        findings = [Finding(f.key, f.message, origins.find(f.key)) for f in findings]
    return list(dict.fromkeys(findings))


def require_sound(cfg: DictConfig, origins: Origins | None = None) -> None:
    """Raise a `UserError` that lists all findings, if there are any."""
    findings = check(cfg, origins)
    if findings:
        count = "1 problem" if len(findings) == 1 else f"{len(findings)} problems"
        lines = "\n".join(f"  {finding}" for finding in findings)
        raise UserError(f"the config has {count}; nothing was started:\n{lines}")


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, container, key within it) of everything below a node, without resolving."""
    names: Iterable[Any] = node.keys() if isinstance(node, DictConfig) else range(len(node))
    for name in names:
        key = f"{path}.{name}" if path else str(name)
        yield key, node, name
        raw = node._get_node(name)
        if isinstance(raw, (DictConfig, ListConfig)) and not (
            raw._is_none() or raw._is_missing() or raw._is_interpolation()
        ):
            yield from _leaves(raw, key)


def _unknown(cfg: DictConfig) -> Iterator[Finding]:
    """Keys that were forced (`++key=...`) into nodes whose every key the framework knows."""
    for key, container, name in _leaves(cfg, ""):
        kind = OmegaConf.get_type(container)
        if kind is not None and is_dataclass(kind):
            known = [f.name for f in fields(kind)]
            if name not in known:
                yield Finding(key, f"nobody reads this key.{did_you_mean(name, known)}")


def _unresolved(cfg: DictConfig) -> Iterator[Finding]:
    for key, container, name in _leaves(cfg, ""):
        if OmegaConf.is_missing(container, name):
            yield Finding(key, f"has no value; give one, as in `{key}=...`")
            continue
        try:
            _ = container[name]
        except OmegaConfBaseException as error:
            raw = container._get_node(name)
            text = raw._value() if raw is not None else ""
            wanted = str(text).strip("${}")
            reason = str(error).splitlines()[0]
            hint = did_you_mean(wanted, [k for k, _, _ in _leaves(cfg, "")]) if ":" not in wanted else ""
            yield Finding(key, f"`{text}` does not resolve: {reason}.{hint}")
        if name == "_target_" and "${" in str(container._get_node(name)._value()):
            continue


def _components(cfg: DictConfig) -> Iterator[Finding]:
    for key in COMPONENTS:
        node = _select(cfg, key)
        if node and "_target_" not in node:
            yield Finding(key, f"has keys ({', '.join(map(str, node))}) but no `_target_`, so nothing reads them")
    for key in COMPONENT_SETS:
        for name, node in (_select(cfg, key) or {}).items():
            if not isinstance(node, dict) or "_target_" not in node:
                yield Finding(f"{key}.{name}", "is not a component: it has no `_target_`")
    for key, container, name in [("", None, None), *_leaves(cfg, "")]:
        node = cfg if container is None else container._get_node(name)
        if not isinstance(node, DictConfig) or node._is_none() or node._is_missing() or node._is_interpolation():
            continue
        if node.get(REQUIRES):
            yield from (Finding(key, m) for m in unmet(cfg, key, _resolved(node[REQUIRES])))
        if "_target_" in node:
            yield from _target(key, node)


def _select(cfg: DictConfig, key: str) -> Any:
    return plain(OmegaConf.select(cfg, key, throw_on_resolution_failure=False))


def _target(key: str, node: DictConfig) -> Iterator[Finding]:
    try:
        target = node["_target_"]
        signature = read_signature(target)
    except OmegaConfBaseException:
        return
    except TargetNotFound as error:
        hint = did_you_mean(error.missing, error.known)
        if error.package and not hint:
            hint = " Is it installed, or its folder on PYTHONPATH?"
        yield Finding(f"{key}._target_", f"`{target}` does not exist: {error}.{hint}")
        return
    except (SyntaxError, OSError) as error:
        yield Finding(f"{key}._target_", f"`{target}` cannot be read: {error}")
        return
    yield from _arguments(key, node, signature)


def _arguments(key: str, node: DictConfig, signature: Signature) -> Iterator[Finding]:
    known = {p.name: p for p in signature.parameters}
    given = [str(k) for k in node if k not in _SPECIAL]
    for name in given:
        if name not in known:
            if not signature.open:
                options = ", ".join(known) or "nothing"
                hint = did_you_mean(name, list(known)) or f" It takes {options}."
                yield Finding(f"{key}.{name}", f"`{signature.target}` has no argument `{name}`.{hint}")
            continue
        yield from _value(f"{key}.{name}", node, name, known[name])
    if not node.get("_partial_", False) and "_args_" not in node:
        for parameter in signature.parameters:
            if parameter.required and parameter.name not in given:
                yield Finding(
                    key, f"`{signature.target}` needs `{parameter.name}`; give it as `{key}.{parameter.name}`"
                )


def _value(key: str, node: DictConfig, name: str, parameter: Parameter) -> Iterator[Finding]:
    try:
        raw = node[name]
        value = OmegaConf.to_container(raw, resolve=True) if OmegaConf.is_config(raw) else plain(raw)
    except OmegaConfBaseException:
        return
    wanted = misfit(value, parameter.annotation)
    if wanted:
        hint = _near_option(value, parameter.annotation)
        yield Finding(key, f"{value!r} does not fit: `{name}` takes {wanted}.{hint}")
        return
    kind = existing_path(parameter.annotation)
    if kind and isinstance(value, str) and "://" not in value:
        path = Path(value).expanduser()
        if not (path.is_file() if kind == "file" else path.is_dir()):
            near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
            yield Finding(key, f"there is no {kind} `{value}`.{near}")


def _near_option(value: object, annotation: ast.expr | None) -> str:
    options = [n.value for n in ast.walk(annotation) if isinstance(n, ast.Constant)] if annotation else []
    return did_you_mean(str(value), [o for o in options if isinstance(o, str)])


def _resolved(node: DictConfig) -> dict[str, Any]:
    """Return requirements as plain values; those that do not resolve stay, and are reported as such."""
    try:
        return plain(OmegaConf.to_container(node, resolve=True))
    except OmegaConfBaseException:
        return plain(node)
