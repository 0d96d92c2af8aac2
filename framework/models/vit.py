"""A small vision transformer (Dosovitskiy et al., 2020), with a mean over patches instead of a class token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .transformer import BLOCK_PLAN, Block


class ViT(nn.Module):
    """Patches, learned positions, transformer blocks, mean, linear head.

    Args:
        channels: channels of the input.
        size: height and width of the input.
        outputs: size of the output.
        patch: height and width of a patch; must divide `size`.
        width, depth, heads: of the transformer.
        mlp_ratio: hidden size of the MLP over `width`.
        dropout: see `Block`.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        outputs: int,
        patch: int = 2,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: int = 4,
        dropout: float = 0.1,
    ):
        super().__init__()
        if size % patch:
            raise ValueError(f"size {size} is not a multiple of patch {patch}")
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2, width) * 0.02)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio * width, causal=False, dropout=dropout) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:  # [batch, channels, size, size] -> [batch, outputs]
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions  # [batch, patches, width]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))

    def tensor_parallel_plan(self) -> dict[str, str]:
        """Return how layers are cut when several processes share their work."""
        return {f"blocks.*.{layer}": style for layer, style in BLOCK_PLAN.items()}
