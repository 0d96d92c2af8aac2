import subprocess
import sys

import pytest

from tests.conftest import HOME

PROBE = """
import sys
{code}
loaded = {{m.split('.')[0] for m in sys.modules}}
heavy = sorted(loaded & {{'torch', 'pytorch_lightning', 'deepspeed', 'zarr', 'dask', 'wandb'}})
print('HEAVY', heavy)
"""


@pytest.mark.parametrize(
    "code",
    [
        "sys.argv = ['run.py', '--cfg', 'job']\nfrom framework.app import main\ntry: main()\nexcept SystemExit: pass",
        "sys.argv = ['run.py', 'check=true']\nfrom framework.app import main\ntry: main()\nexcept SystemExit: pass",
        "sys.argv = ['run.py', '--help']\nfrom framework.app import main\ntry: main()\nexcept SystemExit: pass",
        "from framework.__main__ import main\nassert main(['check', 'recipe=stdlib_gpt']) == 0",
        "from framework.__main__ import main\nmain(['runs'])",
    ],
    ids=["compose", "check", "help", "framework check", "runs"],
)
def test_composing_checking_and_listing_import_nothing_heavy(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(code=code)], cwd=HOME, capture_output=True, text=True, timeout=60
    )
    assert "HEAVY []" in done.stdout, done.stdout[-500:] + done.stderr[-500:]


def test_only_the_processes_that_train_import_lightning() -> None:
    code = (
        "import framework.training.train, framework.training.evaluate, framework.compress.stage, framework.export.stage"
    )
    loaded = f"{code}, sys; print('pytorch_lightning' in sys.modules or 'lightning_fabric' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], cwd=HOME, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr[-500:]
