import subprocess
import sys

import pytest

from tests.conftest import HOME

pytestmark = pytest.mark.integration


def test_no_fault_gets_through() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/fault_data.py", "--kills", "6", "--flips", "60", "--memory", "0"],
        cwd=HOME,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "60 of 60 named" in done.stdout
