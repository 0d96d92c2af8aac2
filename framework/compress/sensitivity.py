"""What a pass costs layer by layer: each layer alone is compressed, without training, and the model judged."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from framework.errors import UserError
from framework.record.console import progress, quiet
from framework.training.workbench import Workbench

from .passes import CompressionPass, size_of_model


def layer_sensitivity(
    name: str, compression: CompressionPass, model: nn.Module, bench: Workbench, folder: Path
) -> list[dict[str, Any]]:
    """Return a row for each layer that a pass can work on.

    Args:
        name: the pass's.
        compression: a dataclass with the fields `layers` and, where it trains, `finetune`.
        model: left as it is.
        bench: data and task.
        folder: for the pass.

    Returns:
        pass, layer, bytes saved, the monitored metric on the validation split, and how much of it was lost; nothing
        for a pass that does not choose layers.
    """
    known = {f.name for f in fields(compression)}  # type: ignore[arg-type]
    if "layers" not in known:
        return []
    monitor, sign = f"val/{bench.task.monitor}", -1 if bench.task.mode == "max" else 1
    whole, size = bench.evaluate(model, "val")[0][monitor], size_of_model(model, bench.example())
    layers = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    rows = []
    with progress(f"sensitivity to {name}", len(layers), "layers") as advance:
        for layer in layers:
            untrained = {"finetune": 0} if "finetune" in known else {}
            alone = replace(compression, layers=[layer], **untrained)  # type: ignore[type-var]
            try:
                with quiet():
                    found = alone.apply(copy.deepcopy(model), bench, folder).model
            except UserError:  # a layer that the pass leaves alone
                advance()
                continue
            metric = bench.evaluate(found, "val")[0][monitor]
            saved = size.bytes - size_of_model(found, bench.example()).bytes
            rows.append(
                {"pass": name, "layer": layer, "bytes_saved": saved, monitor: metric, "lost": sign * (metric - whole)}
            )
            advance()
    return rows
