"""Hydra's and OmegaConf's complaints, said so that the user knows what to type."""

from __future__ import annotations

import re

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.errors import MissingConfigException, OverrideParseException

from framework.errors import UserError, did_you_mean


def explain(error: Exception, loader: ConfigLoader | None = None) -> UserError:
    """Turn an error of composition into a `UserError` that names near misses.

    Args:
        error: what Hydra or OmegaConf raised.
        loader: the loader that was composing, to know which groups and keys there are.
    """
    text = str(error).strip()
    cause = error.__cause__
    if cause is not None and str(cause) not in text:
        text += f"\n{str(cause).strip()}"
    text = "\n".join(line for line in text.splitlines() if not _NOISE.match(line.strip()))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        wanted = error.missing_cfg_file.rpartition("/")[2]
        return UserError(f"{text}{_append(did_you_mean(wanted, list(error.options)))}")
    if loader is not None and (match := _NO_OPTION.search(text)):
        options = list_options(loader, match.group(1))
        return UserError(f"{text}{_append(did_you_mean(match.group(2), options))}\nOptions: {', '.join(options)}")
    if isinstance(error, OverrideParseException):
        return UserError(f"the override cannot be read (is a quote or bracket open?): {error.override}")
    if loader is not None and (match := _NO_GROUP.search(text)):
        groups = list_groups(loader)
        return UserError(f"{text}{_append(did_you_mean(match.group(1), groups))}\nGroups: {', '.join(groups)}")
    if loader is not None and (match := _NO_KEY.search(text)):
        return UserError(f"{text}{_append(did_you_mean(match.group(1), _keys(loader)))}")
    return UserError(text)


_NOISE = re.compile(
    r"(full_key: |object_type=|reference_type=|Set the environment variable HYDRA_FULL_ERROR|Config search path:"
    r"|provider=|See https://hydra.cc).*"
)
_NO_OPTION = re.compile(r"Could not load '([\w/-]+)/([\w.-]+)'")
_NO_GROUP = re.compile(r"Could not (?:override|find) '([\w/]+)'\.?\s*\n?No match in the defaults list")
_NO_KEY = re.compile(r"Could not override '([\w.]+)'")


def list_groups(loader: ConfigLoader) -> list[str]:
    """Return the names of the config groups of the experiment."""
    groups: set[str] = set(loader.list_groups(""))
    return sorted(g for g in groups if not g.startswith("hydra"))


def list_options(loader: ConfigLoader, group: str) -> list[str]:
    """Return the options of a group."""
    return list(loader.get_group_options(group, results_filter=ObjectType.CONFIG))


def _keys(loader: ConfigLoader) -> list[str]:
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import DictConfig

    if not GlobalHydra.instance().is_initialized():
        return []
    cfg = compose("config")

    def walk(node: DictConfig, path: str) -> list[str]:
        keys = []
        for name in map(str, node):
            key = f"{path}{name}"
            keys.append(key)
            child = node._get_node(name)
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
                keys += walk(child, f"{key}.")
        return keys

    return walk(cfg, "")


def _append(hint: str) -> str:
    return f"\n{hint.strip()}" if hint else ""
