"""What a job's process imports and looks up anyway, done once by the fork server from which it is forked."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module

from framework.config.plugins import register
from framework.record.environment import package_versions

MODULES = (
    "framework.runner",
    "framework.data.dataset",
    "framework.training.train",
    "framework.training.evaluate",
    "framework.tracking.csv",
    "torch.optim.adamw",
    "torch._dynamo",
)

for name in MODULES:
    with suppress(ImportError):  # whoever needs it will say so
        import_module(name)
register()
package_versions()
