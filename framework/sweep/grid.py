"""Hydra's grid sweep, with every point checked before the first one starts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.plugins import Plugins
from omegaconf import open_dict

from framework.config.check import require_sound
from framework.config.compose import CONFIG_NAME
from framework.config.origins import Origins
from framework.errors import UserError


class GridSweeper(BasicSweeper):
    """Every combination of the values given (`-m optimizer.lr=1e-3,1e-2 model=cnn,vit`), one after another."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Check all points statically; `check=false` turns it off.

        Raises:
            UserError: listing the points that are not sound, with their findings.
        """
        assert self.hydra_context is not None and self.config is not None
        loader = self.hydra_context.config_loader
        complaints = []
        for overrides in batch:
            config = loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.pop("hydra")
            if config.check.lower() == "false":
                continue
            try:
                require_sound(config, Origins(loader, CONFIG_NAME, overrides))
            except UserError as error:
                complaints.append(f"{' '.join(overrides)}\n{error}")
        if complaints:
            listed = "\n".join(complaints)
            raise UserError(f"{len(complaints)} of {len(batch)} points of the sweep are not sound:\n{listed}")


def register_sweepers() -> None:
    """Make Hydra know the sweeper; it takes plugins only from modules below `hydra_plugins`, so it is shown there."""
    try:
        package = import_module("hydra_plugins")
    except ImportError:
        package = sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
    module = ModuleType("hydra_plugins.framework")
    sys.modules[module.__name__] = module
    vars(package)["framework"], vars(module)["GridSweeper"] = module, GridSweeper
    GridSweeper.__module__ = module.__name__
    Plugins.instance().register(GridSweeper)
