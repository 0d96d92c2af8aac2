"""The command line of `run.py`: compose with Hydra, check, hand over to the runner."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from framework.config.check import require_sound
from framework.config.components import as_plain
from framework.config.compose import CONFIG_NAME, command_line_loader, config_dir_of, inherit_overrides
from framework.config.explain import explain
from framework.config.machine import assume_nodes
from framework.config.origins import Origins
from framework.config.plugins import CONF, register
from framework.errors import EXIT_DONE, Ended, Preempted, UserError
from framework.record.catalogue import main_metric
from framework.record.console import report_failure

if TYPE_CHECKING:
    from framework.launch.cluster import ClusterLauncher


def main() -> None:
    """Run the command line in `sys.argv`; exits with DONE (0), USER (2), PREEMPTED (75) or FAILED (1)."""
    sys.exit(_guarded(_command_line))


def _guarded(work: Callable[[], None]) -> int:
    try:
        work()
    except Ended as ended:
        return ended.code
    except (HydraException, OmegaConfBaseException) as error:
        with command_line_loader(sys.argv[1:]) as loader:
            return report_failure(explain(error, loader))
    except (Exception, KeyboardInterrupt) as error:
        if str(error).startswith("Config group override must be"):  # Hydra's own words, for a group given null
            error = UserError("a group takes the name of an option; to leave one out, put ~ before it, as in `~recipe`")
        return report_failure(error)
    return EXIT_DONE


def _command_line() -> None:
    import hydra

    config_dir_of(sys.argv[1:])
    register()
    from framework.sweep.sweepers import register_sweepers

    register_sweepers()
    if {"--help", "-h"} & set(sys.argv[1:]):
        from framework.config.catalogue import describe_groups

        with command_line_loader(sys.argv[1:]) as loader:
            print(describe_groups(loader))
        return
    typed = inherit_overrides(sys.argv[1:])
    sys.argv[1:] = sorted(typed, key=lambda a: a not in ("-m", "--multirun"))  # Hydra reads overrides after it only
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on instead of printing them and exiting with 1
    hydra.main(config_path=str(CONF), config_name=CONFIG_NAME, version_base="1.3")(_experiment)()


def _experiment(config: DictConfig) -> float | None:
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    own = HydraConfig.get()
    overrides = list(own.overrides.task)
    if own.mode is RunMode.MULTIRUN and config.group is None:
        config.group = Path(own.sweep.dir).name
    try:
        return _check_and_run(
            config, overrides, Origins(GlobalHydra.instance().config_loader(), CONFIG_NAME, overrides)
        )
    except Ended as ended:
        if own.mode is RunMode.RUN:
            sys.exit(ended.code)
        raise
    except Exception as error:
        code = report_failure(error)
        if own.mode is RunMode.RUN or isinstance(error, Preempted):  # a stop means all of a sweep
            sys.exit(code)
        raise Ended(code) from error


def _check_and_run(config: DictConfig, overrides: list[str], origins: Origins) -> float | None:
    """Run an experiment; returns its main metric, for sweepers of others."""
    mode, launcher = config.check.lower(), _launcher(config)
    if mode != "false":
        require_sound(config, origins)
    if mode == "shapes":
        from framework.training.estimate import describe_shapes

        print(describe_shapes(config))
    elif mode == "true":
        print("the config is sound")
    elif launcher is not None:
        from framework.launch.submission import submit_experiment

        if config.resume == "auto" and config.run_dir is None:
            from framework.runner import unfinished

            before = unfinished(config)
            config.run_dir = None if before is None else str(before)
        submit_experiment(config, overrides, launcher, _launcher_node())
    elif config.dry_run:
        print("the config is sound; it would run in this process (dry_run)")
    else:
        from framework.runner import run

        found = main_metric(run(config, overrides))
        return found[1] if found else None
    return None


def _launcher_node() -> dict[str, Any]:
    from hydra.core.hydra_config import HydraConfig

    return as_plain(HydraConfig.get().launcher)


def _launcher(config: DictConfig) -> ClusterLauncher | None:
    """Return the launcher, where it is one that sends the experiment to a cluster, and tell the config of it."""
    from framework.launch.cluster import cluster_launcher

    launcher = cluster_launcher(_launcher_node())
    if launcher is not None:
        config.strategy.num_nodes = launcher.nodes
        assume_nodes(launcher.nodes, launcher.gpus_per_node)
    return launcher
