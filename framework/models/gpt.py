"""A decoder-only language model: RMSNorm, rotary positions, tied embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .transformer import BLOCK_PLAN, Block, rotation_table


class GPT(nn.Module):
    """From tokens to the logits of the tokens that follow them.

    Args:
        vocabulary: number of tokens.
        context: longest sequence.
        width, depth, heads: of the transformer.
        mlp_ratio: hidden size of the MLP over `width`.
        dropout: see `Block`.
    """

    def __init__(
        self,
        vocabulary: int,
        context: int,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: int = 4,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.context, self.heads = context, heads
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio * width, causal=True, dropout=dropout) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(width)
        cos, sin = rotation_table(context, width // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.apply(_initialise)
        for name, weight in self.named_parameters():
            if name.endswith(("attention.out.weight", "mlp_out.weight")):  # keeps the residual stream's variance
                nn.init.normal_(weight, std=0.02 / (2 * depth) ** 0.5)

    def forward(self, tokens: Tensor) -> Tensor:  # [batch, time] -> [batch, time, vocabulary]
        time = tokens.shape[1]
        rotation = (self.cos[:time], self.sin[:time])
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, rotation)
        return F.linear(self.norm(x), self.embedding.weight)

    def decode(self, tokens: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Go on with a text whose earlier positions are known by their keys and values.

        Args:
            tokens: what is new, [batch, time]: the prompt at first, then one token at a time.
            keys, values: of what came before, each [depth, batch, heads, past, head width]; `empty_cache` at first.

        Returns:
            logits of the new positions, [batch, time, vocabulary], and the keys and values of all.
        """
        past, time = keys.shape[3], tokens.shape[1]
        rotation = (self.cos[past : past + time], self.sin[past : past + time])
        x = self.embedding(tokens)
        found = []
        for i, block in enumerate(self.blocks):
            x, k, v = block.extend(x, rotation, keys[i], values[i])
            found.append((k, v))
        keys, values = (torch.stack(each) for each in zip(*found, strict=True))
        return F.linear(self.norm(x), self.embedding.weight), keys, values

    def empty_cache(self, batch: int, past: int = 0) -> Tensor:
        """Return keys (or values) of `past` positions, all zero, [depth, batch, heads, past, head width]."""
        width = self.blocks[0].attention.head_width
        return self.embedding.weight.new_zeros(len(self.blocks), batch, self.heads, past, width)

    def tensor_parallel_plan(self) -> dict[str, str]:
        """Return how layers are cut when several processes share their work."""
        return {f"blocks.*.{layer}": style for layer, style in BLOCK_PLAN.items()}

    @torch.no_grad()
    def generate(self, tokens: Tensor, length: int, temperature: float, generator: torch.Generator) -> Tensor:
        """Return `tokens` [batch, time] with `length` more, drawn one by one from the softened distribution."""
        for _ in range(length):
            logits = self(tokens[:, -self.context :])[:, -1].float().cpu()
            drawn = torch.multinomial(F.softmax(logits / temperature, dim=-1), 1, generator=generator)
            tokens = torch.cat((tokens, drawn.to(tokens.device)), dim=1)
        return tokens


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
