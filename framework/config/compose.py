"""Composing an experiment outside of `run.py`: for the check, for tests, for other programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

from framework.errors import UserError

from .origins import Origins
from .plugins import CONF, register

CONFIG_NAME = "config"
OVERRIDES_FILE = "overrides.txt"
_NOT_INHERITED = ("stages", "from_run", "run_dir", "resume", "check")


def compose_experiment(overrides: Sequence[str] = (), config_dir: Path | None = None) -> tuple[DictConfig, Origins]:
    """Compose a config as `python run.py [--config-dir DIR] OVERRIDES` would.

    Returns:
        the config, and where its keys were set.

    Raises:
        UserError: when a group, an option or a key does not exist.
    """
    from hydra import compose
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from .explain import explain

    typed = inherit_overrides(overrides)
    with _loader(config_dir) as loader:
        try:
            return compose(CONFIG_NAME, overrides=typed), Origins(loader, CONFIG_NAME, typed)
        except (HydraException, OmegaConfBaseException) as error:
            raise explain(error, loader) from None


def inherit_overrides(arguments: Sequence[str]) -> list[str]:
    """Put the overrides of the run that `from_run=PATH` continues before those typed, which win.

    With a `recipe=` of its own the command line describes the experiment anew, and nothing is taken over.
    """
    typed = {_key(a): a for a in arguments if "=" in a}
    folder = typed.get("from_run", "").partition("=")[2].strip("'\"")
    file = Path(folder) / OVERRIDES_FILE
    if not folder or folder == "null" or "recipe" in typed or not file.is_file():
        return list(arguments)
    earlier = file.read_text(encoding="utf-8").splitlines()
    return [*(o for o in earlier if _key(o) not in (*typed, *_NOT_INHERITED)), *arguments]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def config_dir_of(arguments: Sequence[str]) -> Path | None:
    """Return the folder that `--config-dir` names on a command line.

    Raises:
        UserError: when it does not exist.
    """
    for flag, value in pairwise([*arguments, ""]):
        name, _, joined = flag.partition("=")
        if name in ("--config-dir", "-cd"):
            return _existing(Path(joined or value))
    return None


def _existing(config_dir: Path) -> Path:
    if not config_dir.is_dir():
        raise UserError(f"--config-dir: there is no folder `{config_dir}`")
    return config_dir


@contextmanager
def command_line_loader(arguments: Sequence[str]) -> Iterator[ConfigLoader]:
    """Yield the loader that Hydra uses for a command line, with the folder of its `--config-dir`."""
    with _loader(config_dir_of(arguments)) as loader:
        yield loader


@contextmanager
def _loader(config_dir: Path | None) -> Iterator[ConfigLoader]:
    from hydra import initialize_config_dir
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.global_hydra import GlobalHydra

    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        if config_dir is not None:
            assert isinstance(loader, ConfigLoaderImpl)
            folder = _existing(config_dir).resolve()
            loader.get_search_path().prepend("command-line", f"file://{folder}", anchor="schema")
            loader.repository.initialize_sources(loader.get_search_path())
        yield loader
