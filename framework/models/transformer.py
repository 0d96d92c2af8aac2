"""The transformer block that the ViT and the GPT share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention, with rotary positions where they are given (Su et al., 2021).

    Args:
        width: size of the embedding.
        heads: number of heads; must divide `width`.
        causal: whether a position sees only those before it.
    """

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.head_width, self.causal = width // heads, causal
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None) -> Tensor:  # [batch, time, width]
        q, k, v = self._project(x, rotation)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2))

    def attend(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend to earlier positions as well.

        Args:
            x: new positions, [batch, time, width].
            rotation: cosines and sines of their places.
            keys, values: of the earlier positions, each [batch, heads, past, head width].

        Returns:
            what `forward` would give for the new positions, and the keys and values of all.
        """
        q, k, v = self._project(x, rotation)
        k, v = torch.cat((keys, k), dim=2), torch.cat((values, v), dim=2)
        past, time = keys.shape[2], x.shape[1]
        seen = torch.arange(past + time)[None] <= torch.arange(time)[:, None] + past  # [time, past + time]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.out(y.transpose(1, 2).flatten(2)), k, v

    def _project(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        batch, time, _ = x.shape
        qkv = self.query_key_value(x).view(
            batch, time, -1, 3, self.head_width
        )  # head by head, so that heads can be shared out
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)  # each [batch, heads, time, head width]
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        return q, k, v


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream.

    Args:
        width, heads, causal: see `Attention`.
        mlp_width: size of the MLP's hidden layer.
        dropout: probability of dropping an element of each branch while training.
    """

    def __init__(self, width: int, heads: int, mlp_width: int, causal: bool, dropout: float = 0.0):
        super().__init__()
        self.norm_attention = nn.RMSNorm(width)
        self.attention = Attention(width, heads, causal)
        self.norm_mlp = nn.RMSNorm(width)
        self.mlp_in = nn.Linear(width, mlp_width, bias=False)
        self.mlp_out = nn.Linear(mlp_width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None) -> Tensor:  # [batch, time, width]
        x = x + self.dropout(self.attention(self.norm_attention(x), rotation))
        return x + self.dropout(self._mlp(x))

    def extend(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Do what `forward` does for positions that follow others; see `Attention.attend`. Not for training."""
        attended, keys, values = self.attention.attend(self.norm_attention(x), rotation, keys, values)
        x = x + attended
        return x + self._mlp(x), keys, values

    def _mlp(self, x: Tensor) -> Tensor:
        return self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(x))))


BLOCK_PLAN = {"attention.query_key_value": "columns", "attention.out": "rows", "mlp_in": "columns", "mlp_out": "rows"}
"""How a block's layers are cut for tensor parallelism: each rank has whole heads, and a part of the MLP."""


def rotation_table(length: int, head_width: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of rotary positions, each [length, head width / 2]."""
    frequencies = base ** (-torch.arange(0, head_width, 2).float() / head_width)
    angles = torch.outer(torch.arange(length).float(), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the two halves of each head by its position's angles; x is [batch, heads, time, head width]."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
