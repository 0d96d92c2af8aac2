"""What Hydra must know before it composes: search path, recipes, resolvers, schema, sweeper.

Importing this module does nothing; `register()` is idempotent and cheap, and every process that composes
a config calls it first.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.search_path_plugin import SearchPathPlugin

from hydra._internal.core_plugins.file_config_source import FileConfigSource  # isort: skip

PACKAGE = Path(__file__).resolve().parent.parent
HOME = PACKAGE.parent if (PACKAGE.parent / "conf").is_dir() else PACKAGE
CONF = HOME / "conf"
RECIPES = HOME / "recipes"


class RecipeSource(FileConfigSource):
    """Serves `recipes/<name>/recipe.yaml` as option `<name>` of the config group `recipe`."""

    @staticmethod
    def scheme() -> str:
        return "recipes"

    def _file(self, config_path: str) -> str | None:
        group, _, name = config_path.partition("/")
        name = name.removesuffix(".yaml")
        return f"{name}/recipe.yaml" if group == "recipe" and name and "/" not in name else None

    def load_config(self, config_path: str):  # type: ignore[no-untyped-def]  # Hydra's own type is private
        return super().load_config(self._file(config_path) or config_path)

    def is_group(self, config_path: str) -> bool:
        return config_path in ("", "recipe")

    def is_config(self, config_path: str) -> bool:
        file = self._file(config_path)
        return file is not None and super().is_config(file)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path == "":
            return [] if results_filter is ObjectType.CONFIG else ["recipe"]
        if config_path != "recipe" or results_filter is ObjectType.GROUP:
            return []
        return sorted(folder.parent.name for folder in Path(self.path).glob("*/recipe.yaml"))


class FrameworkSearchPath(SearchPathPlugin):
    """Puts the framework's recipes and the user's own (`./recipes`, `FRAMEWORK_RECIPES`) on the search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        folders = [
            RECIPES,
            Path.cwd() / "recipes",
            *map(Path, os.environ.get("FRAMEWORK_RECIPES", "").split(":")),
        ]
        for folder in dict.fromkeys(f.resolve() for f in folders if str(f) != "." and f.is_dir()):
            search_path.append("recipes", f"recipes://{folder}")


@cache
def register() -> None:
    """Register everything with Hydra and OmegaConf. Safe to call any number of times."""
    from hydra._internal.sources_registry import SourcesRegistry
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    from .resolvers import register_resolvers
    from .schema import Config

    SourcesRegistry.instance().register(RecipeSource)
    Plugins.instance().register(FrameworkSearchPath)
    ConfigStore.instance().store(name="schema", node=Config, provider="framework")
    register_resolvers()
