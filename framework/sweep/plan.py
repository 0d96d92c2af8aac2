"""From a point of a sweep to the config of its trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from framework.config.check import require_sound
from framework.config.compose import CONFIG_NAME
from framework.config.explain import explain
from framework.config.origins import Origins
from framework.errors import UserError

from .space import Space, Value


class ComposedPlan:
    """Composes a trial's config as its command line would, and checks it.

    Args:
        loader: Hydra's.
        master: the config that was composed for the sweep.
        space: what is varied.
        sweep: the sweep's folder; its name is the runs' group.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig, space: Space, sweep: Path) -> None:
        self._loader, self._master, self._space, self._sweep = loader, master, space, sweep

    def overrides(self, values: Mapping[str, Value]) -> list[str]:
        """Return what would be typed."""
        return self._space.overrides(values)

    def config(self, number: int, values: Mapping[str, Value]) -> DictConfig:
        """Return the config of a trial, with its run directory.

        Raises:
            UserError: when it cannot be composed, or is not sound.
        """
        config = self._composed(values)
        config.group = config.group or self._sweep.name
        config.run_dir = str(Path(config.outputs, config.name, f"{self._sweep.name}_{number}").resolve())
        return config

    def _composed(self, values: Mapping[str, Value]) -> DictConfig:
        overrides = self._space.overrides(values)
        try:
            config = self._loader.load_sweep_config(self._master, overrides)
            with open_dict(config):
                config.pop("hydra")
        except (HydraException, OmegaConfBaseException) as error:
            raise explain(error, self._loader) from None
        if config.check.lower() != "false":
            require_sound(config, Origins(self._loader, CONFIG_NAME, overrides))
        return config

    def check(self, points: Sequence[Mapping[str, Value]]) -> None:
        """Check points before anything starts.

        Raises:
            UserError: listing those that are not sound, with their findings.
        """
        complaints = []
        for values in points:
            try:
                self._composed(values)
            except UserError as error:
                complaints.append(f"{' '.join(self._space.overrides(values))}\n{error}")
        if complaints:
            listed = "\n".join(complaints)
            raise UserError(f"{len(complaints)} of {len(points)} points of the sweep are not sound:\n{listed}")
