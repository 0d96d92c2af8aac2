"""How much arithmetic a training is, and how much of it a device could do at most.

Model FLOP/s and their share of the peak (MFU) as in Chowdhery et al., "PaLM", 2022, appendix B: what the model needs,
not what is computed again.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# dense peaks without sparsity, in TFLOP/s: bfloat16 or float16, TensorFloat-32, 32-bit floats, float8 (data sheets)
_PEAKS = {
    "H200": (989, 495, 67, 1979),
    "H100 PCIe": (756, 378, 51, 1513),
    "H100": (989, 495, 67, 1979),
    "A100": (312, 156, 19.5, None),
    "L40S": (362, 183, 91.6, 733),
    "L4": (121, 60, 30.3, 242),
    "A10": (125, 62.5, 31.2, None),
    "RTX 4090": (165, 82.6, 82.6, 330),
    "RTX 3090": (71, 35.6, 35.6, None),
    "V100": (125, None, 15.7, None),
    "T4": (65, None, 8.1, None),
}


def training_flops(model: nn.Module, inputs: Sequence[Tensor]) -> float | None:
    """Return the floating-point operations of a training step for one row: forward, and backward.

    Backward is the same again for the gradients of activations, and again for those of the weights that are trained.

    Args:
        model: the network; it is copied to the meta device, and nothing is computed.
        inputs: its arguments, some rows.

    Returns:
        None for a model that needs values to go through.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            shadow(*(x.to("meta") for x in inputs))
    except (RuntimeError, NotImplementedError):
        return None
    weights = list(model.parameters())
    trained = sum(p.numel() for p in weights if p.requires_grad) / max(1, sum(p.numel() for p in weights))
    return counter.get_total_flops() * (2 + trained) / len(inputs[0])


def peak_flops(device: torch.device, precision: str, tf32: bool = False, float8: bool = False) -> float | None:
    """Return what a device can do in a second at most; None where that is not known.

    Args:
        device: where the training runs.
        precision: Lightning's word.
        tf32: 32-bit products are made in TensorFloat-32.
        float8: linear layers are.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for known, (half, tensor_float, single, eighth) in _PEAKS.items():
        if all(word in name.split() or word in name.split("-") for word in known.split()):
            full = tensor_float if tf32 else single
            peak = full if precision == "32-true" else eighth if float8 else half
            return None if peak is None else peak * 1e12
    return None
