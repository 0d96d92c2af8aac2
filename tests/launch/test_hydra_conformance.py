"""Hydra's own conformance suites, on our launcher and our sweeper, in applications that are not ours."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import version
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite
from omegaconf import OmegaConf

from framework.config.plugins import CONF, register
from framework.sweep.sweepers import register_sweepers
from tests.conftest import HOME

pytestmark = pytest.mark.integration

PLUGIN = f"""
import sys
sys.path.insert(0, {str(HOME)!r})
from framework.launch.hydra_launcher import LocalLauncher
from framework.sweep.sweepers import GridSweeper
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
LocalLauncher.__module__ = GridSweeper.__module__ = __name__
for group, name in (("launcher", "local"), ("sweeper", "grid")):
    node = OmegaConf.load(f"{CONF}/hydra/{{group}}/{{name}}.yaml")
    ConfigStore.instance().store(group=f"hydra/{{group}}", name=name, node=node, provider="framework")
"""


@pytest.fixture(autouse=True)
def plugins(hydra_restore_singletons: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register the plugins here, and show them to other processes as a package of `hydra_plugins` would be."""
    version.setbase("1.1")  # what the suites count on; other tests in this process have asked for another
    Plugins.instance()
    register_sweepers()
    for group, name in (("launcher", "local"), ("sweeper", "grid")):
        node = OmegaConf.load(CONF / "hydra" / group / f"{name}.yaml")
        ConfigStore.instance().store(group=f"hydra/{group}", name=name, node=node, provider="framework")
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "framework.py").write_text(PLUGIN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    yield
    register.cache_clear()  # the singletons go back to what they were, in which nothing of ours need be


@pytest.mark.parametrize("launcher_name, overrides", [("local", ["hydra.launcher.n_jobs=2"])])
class TestLauncher(LauncherTestSuite):
    pass


@pytest.mark.parametrize("launcher_name, overrides", [("local", ["hydra.sweeper.max_batch_size=2"])])
class TestLauncherInBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.parametrize(
    "task_launcher_cfg, extra_flags", [({"defaults": [{"override hydra/launcher": "local"}]}, ["-m"])]
)
class TestLauncherIntegration(IntegrationTestSuite):
    pass


@pytest.mark.parametrize("launcher_name, overrides", [("basic", ["hydra/sweeper=grid"])])
class TestSweeper(LauncherTestSuite):
    pass


@pytest.mark.parametrize(
    "launcher_name, overrides", [("basic", ["hydra/sweeper=grid", "hydra.sweeper.max_batch_size=2"])]
)
class TestSweeperInBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.parametrize(
    "task_launcher_cfg, extra_flags", [({"defaults": [{"override hydra/sweeper": "grid"}]}, ["-m"])]
)
class TestSweeperIntegration(IntegrationTestSuite):
    pass
