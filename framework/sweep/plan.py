"""From a point of a sweep to the config of its trial."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from framework.config.check import require_sound
from framework.config.compose import CONFIG_NAME
from framework.config.explain import explain
from framework.config.origins import Origins
from framework.errors import UserError

from .space import Space, Value

_KEPT = 64
"""How many compositions are remembered, so that trials need not be composed from their files."""


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
        self._composed_before: dict[tuple[str, ...], DictConfig] = {}

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
            config = self._compose(overrides)
        except (HydraException, OmegaConfBaseException) as error:
            raise explain(error, self._loader) from None
        if config.check.lower() != "false":
            require_sound(config, Origins(self._loader, CONFIG_NAME, overrides))
        return config

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        """Compose a config; what trials have in common (all but values that vary) is composed once.

        Hydra, too, applies values after it has composed what the groups name, so that nothing else comes out.
        """
        parsed = OverridesParser.create(self._loader).parse_overrides(list(overrides))
        last = [o for o in parsed if o.input_line in self._varied(overrides) and not self._is_group(o)]
        first = tuple(o.input_line or "" for o in parsed if o not in last)
        if first not in self._composed_before:
            config = self._loader.load_sweep_config(self._master, list(first))
            with open_dict(config):
                config.pop("hydra")
            if len(self._composed_before) >= _KEPT:
                self._composed_before.clear()
            self._composed_before[first] = config
        config = copy.deepcopy(self._composed_before[first])
        ConfigLoaderImpl._apply_overrides_to_config(last, config)
        return config

    def _varied(self, overrides: Sequence[str]) -> set[str]:
        typed = {d.typed for d in self._space.dimensions}
        return {o for o in overrides if o.partition("=")[0] in typed}

    def _is_group(self, override: Override) -> bool:
        assert isinstance(self._loader, ConfigLoaderImpl)
        return override.package is not None or self._loader.repository.group_exists(override.key_or_group)

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
