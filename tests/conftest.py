"""What the tests share: composing small experiments, and running commands as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from framework.config.compose import compose_experiment

HOME = Path(__file__).resolve().parent.parent
Command = Callable[..., subprocess.CompletedProcess]
Compose = Callable[..., DictConfig]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with whole runs, those on clusters first: the longest tests would else be waited for at the end."""

    def rank(item: pytest.Item) -> int:
        if item.get_closest_marker("integration") is None:
            return 3
        return {"test_slurm": 0, "test_kubernetes": 1}.get(item.path.stem, 2)

    items.sort(key=rank)


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """An empty folder for runs."""
    return tmp_path / "outputs"


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root that the tests of a session share, so that the digits are prepared once."""
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture
def small(outputs: Path, datasets: Path) -> Compose:
    """Compose the recipe `digits` at a size that trains in a second; further overrides win."""

    def compose(*overrides: str) -> DictConfig:
        sizes = ["model.widths=[8,16]", "trainer.max_epochs=2", "compress=none", "export=none", "measure.seconds=0.03"]
        places = [f"outputs={outputs}", f"data.store.root={datasets}"]
        taken = {o.partition("=")[0].lstrip("+") for o in overrides}
        if taken & {"model", "recipe"}:
            taken.add("model.widths")
        kept = [o for o in (*sizes, *places) if o.partition("=")[0] not in taken]
        return compose_experiment([*kept, *overrides])[0]

    return compose


@pytest.fixture
def command(outputs: Path, datasets: Path) -> Command:
    """Run `python run.py ...` (or `python -m framework ...`) in a process of its own."""

    def run(
        *arguments: str, module: bool = False, timeout: float = 240, **options: object
    ) -> subprocess.CompletedProcess:
        start = ["-m", "framework"] if module else [str(HOME / "run.py")]
        return subprocess.run(
            [sys.executable, *start, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            **{"cwd": HOME, "env": {**os.environ, "COLUMNS": "120"}, **options},
        )

    return run
