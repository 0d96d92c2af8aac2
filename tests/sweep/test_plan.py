"""The configs of trials."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from framework.config.plugins import CONF, register
from framework.errors import UserError
from framework.sweep.plan import ComposedPlan
from framework.sweep.results import as_recipe
from framework.sweep.reuse import is_same, training_key
from framework.sweep.space import read_space
from framework.sweep.sweepers import register_sweepers

Make = Callable[..., ComposedPlan]


@pytest.fixture
def loader() -> Iterator[ConfigLoader]:
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        register_sweepers()
        yield GlobalHydra.instance().config_loader()


@pytest.fixture
def plan_of(loader: ConfigLoader, tmp_path: Path) -> Make:
    def make(*typed: str) -> ComposedPlan:
        master = loader.load_configuration("config", overrides=list(typed), run_mode=RunMode.MULTIRUN)
        return ComposedPlan(loader, master, read_space(list(typed), {}, {}, loader), tmp_path / "sweep")

    return make


def test_a_trials_config_is_what_its_command_line_composes(plan_of: Make, loader: ConfigLoader) -> None:
    typed = ["recipe=digits,stdlib_gpt", "optimizer=adamw,sgd", "optimizer.lr=1e-3,3e-3", "seed=range(1,3)", "trainer.max_steps=7",
             "+optimizer.momentum=0.8,0.9", "compress=none,structured_pruning", "data.split.seed=${seed}", "tags=[a],[b,c]"]  # fmt: skip
    plan = plan_of(*typed)
    points = [
        {"recipe": r, "optimizer": "sgd" if r == "digits" else "adamw", "optimizer.lr": lr, "seed": seed, "compress": c, "tags": t}
        for r, lr, seed, c, t in (
            ("digits", "1e-3", 1, "none", "[a]"), ("stdlib_gpt", "3e-3", 2, "structured_pruning", "[b,c]"),
            ("digits", "3e-3", 2, "structured_pruning", "[b,c]"), ("digits", "1e-3", 2, "none", "[b,c]"),
        )
    ]  # fmt: skip
    for point in points:
        found = plan._compose(plan.overrides(point))
        expected = loader.load_sweep_config(plan._master, plan.overrides(point))
        with open_dict(expected):
            expected.pop("hydra")
        assert OmegaConf.to_yaml(found, resolve=True) == OmegaConf.to_yaml(expected, resolve=True)
        assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(expected)


def test_a_trial_has_a_run_directory_of_its_own_and_an_unsound_one_is_refused(plan_of: Make) -> None:
    plan = plan_of("trainer.max_epochs=3,hello", "outputs=/x")
    config = plan.config(3, {"trainer.max_epochs": "3"})
    assert (config.group, config.run_dir) == ("sweep", "/x/digits/sweep_3")
    with pytest.raises(UserError, match="hello"):
        plan.config(4, {"trainer.max_epochs": "hello"})
    with pytest.raises(UserError, match="1 of 2 points of the sweep are not sound"):
        plan.check([{"trainer.max_epochs": "3"}, {"trainer.max_epochs": "hello"}])


def test_trials_share_a_training_when_they_differ_after_it_alone(plan_of: Make) -> None:
    plan = plan_of(
        "compress=none,structured_pruning",
        "seed=1,2",
        "stages=[prepare,train,compress],[prepare]",
        "measure.seconds=1,2",
    )
    base = {"compress": "none", "seed": "1", "stages": "[prepare,train,compress]", "measure.seconds": "1"}
    configs = {
        name: plan.config(i, {**base, **change})
        for i, (name, change) in enumerate(
            {
                "base": {}, "again": {}, "pruned": {"compress": "structured_pruning"}, "seed": {"seed": "2"},
                "untrained": {"stages": "[prepare]"},
            }.items()
        )
    }  # fmt: skip
    keys = {name: training_key(config) for name, config in configs.items()}
    assert keys["base"] == keys["again"] == keys["pruned"] != keys["seed"]
    assert keys["untrained"] is None
    assert is_same(configs["base"], configs["again"])
    assert not is_same(configs["base"], configs["pruned"])


def test_a_point_becomes_an_option_of_the_group_recipe(loader: ConfigLoader) -> None:
    overrides = ["recipe=stdlib_gpt", "optimizer=sgd", "optimizer.lr=1e-3", "+optimizer.x='a b'", "compress=[none]", "~tracker",
                 "trainer.max_steps=5", "++model.a.b=[1,c]"]  # fmt: skip
    text, beside = as_recipe(overrides, loader, "trial 1", "digits")
    assert beside == ["~tracker"]
    assert text == (
        "# @package _global_\n# trial 1\ndefaults:\n- stdlib_gpt\n- override /optimizer: sgd\n- override /compress:\n  - none\n"
        "- _self_\noptimizer:\n  lr: 0.001\n  x: a b\ntrainer:\n  max_steps: 5\nmodel:\n  a:\n    b:\n    - 1\n    - c\n"
    )
