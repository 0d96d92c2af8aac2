import os

import pytest

from tests.conftest import Command

pytestmark = pytest.mark.integration


def test_help_lists_every_option_of_every_group_with_what_it_gives(command: Command) -> None:
    done = command("--help")
    assert done.returncode == 0
    assert "stdlib_gpt" in done.stdout
    assert "8-bit weights and activations" in done.stdout
    sections = done.stdout.split("\n\n")
    options = [line for section in sections for line in section.splitlines()[1:] if line.startswith("  ")]
    assert [line for line in options if "basic" not in line and len(line.split()) < 3] == []


@pytest.mark.parametrize(
    ("typed", "completed"),
    [("model=", "model=vit"), ("recipe=st", "recipe=stdlib_gpt"), ("trainer.max_e", "trainer.max_epochs=")],
)
def test_tab_completes_groups_options_and_keys(command: Command, typed: str, completed: str) -> None:
    line = f"python run.py {typed}"
    environment = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_CWORD": "2"}
    done = command("-sc", "query=bash", env=environment)
    assert completed in done.stdout.split()


def test_check_says_everything_at_once_and_shapes_say_what_training_needs(command: Command) -> None:
    bad = command("check", "+optimizer.lrr=1", "model.widths=abc", module=True)
    assert bad.returncode == 2
    assert "2 problems" in bad.stderr
    shapes = command("check", "recipe=stdlib_gpt", "--shapes", module=True)
    assert "820,352 parameters" in shapes.stdout
    assert "activations" in shapes.stdout
    assert "activations" in command("check=shapes").stdout


def test_unknown_flags_and_runs_are_named(command: Command) -> None:
    assert command("runs", "--nonsense", module=True).returncode == 2
    missing = command("runs", "show", "no-such-run", module=True)
    assert missing.returncode == 2
    assert "there is no run `no-such-run`" in missing.stderr
    null = command("recipe=null")
    assert null.returncode == 2
    assert "put ~ before it" in null.stderr
    assert "Traceback" not in null.stderr
    nowhere = command("--config-dir", "no/such/folder", "model=vit")
    assert nowhere.returncode == 2
    assert "Traceback" not in nowhere.stderr
