"""Nothing is done twice: trials that differ only after training share it."""

from __future__ import annotations

import hashlib
import json

from omegaconf import DictConfig, OmegaConf

from framework.record.catalogue import flatten

_AFTER_TRAINING = ("compress", "export", "measure")
_NOT_WHAT = (
    "name", "description", "tags", "group", "stages", "from_run", "run_dir", "resume", "outputs", "check", "tracker",
    "data.dask", "trainer.hang_s", "trainer.checkpoint",
)  # fmt: skip
"""Keys that change nothing of what comes out."""


def training_key(config: DictConfig) -> str | None:
    """Return a name of all that a training depends on; None when nothing is trained."""
    if "train" not in _stages(config) or config.get("from_run"):
        return None
    return _key(config, (*_NOT_WHAT, *_AFTER_TRAINING))


def is_same(a: DictConfig, b: DictConfig) -> bool:
    """Return whether two configs with the same training have the same result."""
    later = set(_AFTER_TRAINING[:2])
    if not later & set(_stages(a)):
        return set(_stages(a)) <= set(_stages(b))
    return _stages(a) == _stages(b) and _key(a, _NOT_WHAT) == _key(b, _NOT_WHAT)


def continue_from(config: DictConfig, run: str) -> None:
    """Have a config begin with the trained model of a run."""
    config.from_run = run
    config.stages = [stage for stage in _stages(config) if stage in ("compress", "export", "report")]


def _stages(config: DictConfig) -> list[str]:
    return [getattr(stage, "value", stage) for stage in config.stages]


def _key(config: DictConfig, without: tuple[str, ...]) -> str:
    prefixes = tuple(f"{name}." for name in without)
    flat = flatten(OmegaConf.to_container(config, resolve=True, enum_to_str=True))
    kept = {k: v for k, v in flat if not f"{k}.".startswith(prefixes)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
