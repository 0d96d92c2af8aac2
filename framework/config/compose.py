"""Composing an experiment outside of `run.py`: for the check, for tests, for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from .origins import Origins
from .plugins import CONF, register

CONFIG_NAME = "config"


def compose_experiment(overrides: Sequence[str] = (), config_dir: Path | None = None) -> tuple[DictConfig, Origins]:
    """Compose a config as `python run.py [--config-dir DIR] OVERRIDES` would.

    Returns:
        the config, and where its keys were set.

    Raises:
        UserError: when a group, an option or a key does not exist.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from .explain import explain

    register()
    GlobalHydra.instance().clear()
    paths = [f"hydra.searchpath=[file://{config_dir.resolve()}]"] if config_dir else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        try:
            cfg = compose(CONFIG_NAME, overrides=[*paths, *overrides])
        except (HydraException, OmegaConfBaseException) as error:
            raise explain(error, loader) from None
        return cfg, Origins(loader, CONFIG_NAME, [*paths, *overrides])
