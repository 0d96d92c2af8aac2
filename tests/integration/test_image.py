"""The image for jobs."""

import shutil
import subprocess

import pytest

from tests.conftest import HOME

pytestmark = pytest.mark.integration


def works(builder: str) -> bool:
    return shutil.which(builder) is not None and not subprocess.run([builder, "info"], capture_output=True).returncode


def test_the_image_for_jobs_can_be_built() -> None:
    builder = next((name for name in ("docker", "podman", "buildah") if works(name)), None)
    if builder is None:
        pytest.skip("no docker, podman or buildah that works")
    done = subprocess.run([builder, "build", "-f", "scripts/Dockerfile", "."], cwd=HOME, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
