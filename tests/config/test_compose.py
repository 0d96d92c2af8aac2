from pathlib import Path

import pytest

from framework.config.compose import compose_experiment, config_dir_of, inherit_overrides
from framework.errors import UserError


def test_without_arguments_the_recipe_digits_is_composed() -> None:
    config, _ = compose_experiment()
    assert config.name == "digits"
    assert list(config.compress) == ["structured_pruning"]
    assert list(config.export) == ["onnx", "torch_export"]


def test_a_group_on_the_command_line_wins_over_the_recipe() -> None:
    config, _ = compose_experiment(["recipe=stdlib_gpt", "model=gpt_124m", "compress=none", "trainer.max_steps=7"])
    assert config.model.width == 768
    assert config.compress == {}
    assert config.trainer.max_steps == 7
    assert config.data.fields.tokens.shape[0] == config.model.context + 1


def test_passes_keep_the_order_in_which_they_are_named() -> None:
    config, _ = compose_experiment(["compress=[static_int8,structured_pruning]"])
    assert list(config.compress) == ["static_int8", "structured_pruning"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle=vit", "Did you mean `model`?"),
        ("model=vitt", "Did you mean `vit`?"),
        ("export=[onxx]", "Did you mean `onnx`?"),
        ("recipe=digit", "Did you mean `digits`"),
        ("trainer.max_epoch=3", "Did you mean `trainer.max_epochs`"),
        ("optimizer.learning_rate=1", "Did you mean `optimizer.lr`"),
        ("trainer.max_epochs=many", "could not be converted to Integer"),
        ("stages=[trian]", "expected one of [prepare, train"),
        ("model.widths=[8", "cannot be read"),
    ],
)
def test_a_slip_of_the_pen_is_named_with_what_was_meant(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        compose_experiment([override])
    assert message in str(caught.value)


def test_a_continued_run_hands_down_its_overrides_and_those_typed_win(tmp_path: Path) -> None:
    (tmp_path / "overrides.txt").write_text("recipe=stdlib_gpt\nmodel.width=32\nstages=[train]\nrun_dir=x\n")
    typed = [f"from_run={tmp_path}", "stages=[export]", "model.width=64"]
    assert inherit_overrides(typed) == ["recipe=stdlib_gpt", *typed]
    assert inherit_overrides([f"from_run={tmp_path}", "recipe=digits"]) == [f"from_run={tmp_path}", "recipe=digits"]


def test_the_folder_of_own_options_is_read_off_a_command_line(tmp_path: Path) -> None:
    assert config_dir_of([]) is None
    assert config_dir_of(["model=vit", "--config-dir", str(tmp_path)]) == tmp_path
    assert config_dir_of([f"--config-dir={tmp_path}", "model=vit"]) == tmp_path
    with pytest.raises(UserError, match="there is no folder"):
        config_dir_of(["--config-dir", str(tmp_path / "no")])
