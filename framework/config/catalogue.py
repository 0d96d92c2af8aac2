"""What there is to choose from: the config groups, their options, and what each option gives."""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_loader import ConfigLoader

from .explain import list_groups, list_options
from .origins import file_of

USAGE = """\
Usage: python run.py [group=option ...] [key=value ...]

  python run.py                                     the recipe `digits`: data, training, compression, export, report
  python run.py recipe=stdlib_gpt trainer.max_steps=100
  python run.py model=vit optimizer.lr=1e-3 compress=none export=[onnx,torch_export]
  python run.py -m model=cnn,vit optimizer.lr=1e-3,3e-3   every combination
  python run.py from_run=outputs/latest stages=[compress,export,report]
  python run.py ... check=true                      only say what is wrong; check=shapes also sizes and memory
  python run.py ... --cfg job                       only show the composed config
  python -m framework --help                        checking, and listing, comparing and repeating runs

--config-dir DIR adds options of your own; --hydra-help shows Hydra's own flags;
eval "$(python run.py -sc install=bash)" installs tab completion.
"""


def describe_groups(loader: ConfigLoader) -> str:
    """Return the usage, and a line for each option of each group: the first comment of its file."""
    lines = [USAGE]
    for group in [
        *list_groups(loader),
        "hydra/launcher",
        "hydra/sweeper",
        "hydra/sweeper/sampler",
        "hydra/sweeper/pruner",
    ]:
        options = list_options(loader, group)
        lines.append(group)
        width = max((len(o) for o in options), default=0)
        lines += [f"  {o:<{width}}  {_purpose(file_of(loader, f'{group}/{o}'))}".rstrip() for o in options]
        lines.append("")
    return "\n".join(lines)


def _purpose(file: Path | None) -> str:
    if file is None:
        return "of another package"
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("# ").strip()
        if not text.startswith("@package"):
            return text
    return ""
