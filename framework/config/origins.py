"""Where a config key got its value: the file and line, or the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from .plugins import RecipeSource


@dataclass(frozen=True)
class _Source:
    package: str
    file: Path


class Origins:
    """Answers where the keys of one composed config were set.

    Args:
        loader: the loader that composed the config.
        config_name: its primary config.
        overrides: what was typed.
    """

    def __init__(self, loader: ConfigLoader, config_name: str, overrides: Sequence[str]) -> None:
        assert isinstance(loader, ConfigLoaderImpl)
        self._loader, self._name, self._overrides = loader, config_name, list(overrides)
        self._sources: list[_Source] | None = None

    def find(self, key: str) -> str | None:
        """Return `path:line` of the last file that sets `key` (or the nearest key above it), or what was typed."""
        for override in reversed(OverridesParser.create().parse_overrides(self._overrides)):
            typed = override.key_or_group
            if (key == typed or key.startswith(f"{typed}.")) and "/" not in typed and "." in typed + key:
                if self._loader.repository.group_exists(typed):
                    continue
                return f"command line: {override.input_line}"
        while key:
            for source in reversed(self._all_sources()):
                line = _line(source.file, _below(key, source.package))
                if line is not None:
                    return f"{_short(source.file)}:{line}"
            key = key.rpartition(".")[0]
        return None

    def _all_sources(self) -> list[_Source]:
        if self._sources is None:
            defaults = self._loader.compute_defaults_list(self._name, self._overrides, RunMode.RUN)
            found = [
                _Source(d.package or "", file)
                for d in defaults.defaults
                if d.config_path and (file := file_of(self._loader, d.config_path)) is not None
            ]
            self._sources = found
        return self._sources


def file_of(loader: ConfigLoader, config_path: str) -> Path | None:
    """Return the file of an option (`group/option`), or None when it is not a file of its own on disk."""
    for source in loader.get_sources():
        if source.scheme() in ("file", "recipes") and source.is_config(config_path):
            name = source._file(config_path) if isinstance(source, RecipeSource) else f"{config_path}.yaml"
            return Path(source.path) / (name or "")
    return None


def _short(file: Path) -> Path:
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file


def _below(key: str, package: str) -> tuple[str, ...] | None:
    """Return the path of `key` inside a file whose content lands at `package`, or None if it lands elsewhere."""
    if not package:
        return tuple(key.split("."))
    if key.startswith(f"{package}."):
        return tuple(key[len(package) + 1 :].split("."))
    return None


def _line(file: Path, path: tuple[str, ...] | None) -> int | None:
    return _lines(file).get(path) if path else None


@cache
def _lines(file: Path) -> dict[tuple[str, ...], int]:
    """Return the line of every key of a YAML file, by its path."""
    lines: dict[tuple[str, ...], int] = {}

    def walk(node: Any, path: tuple[str, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                lines[(*path, name.value)] = name.start_mark.line + 1
                walk(value, (*path, name.value))
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                lines[(*path, str(i))] = value.start_mark.line + 1
                walk(value, (*path, str(i)))

    walk(yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader), ())
    return lines
