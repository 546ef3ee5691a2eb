"""Decoder-only transformer language model."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papermix.errors import UserError
from papermix.models.image_model import check_positive, check_rate


def rotate(x: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary positions (Su et al. 2021, eq. 34): turn feature pairs of ``x`` [B, heads, T, C] by angles that grow with time.

    Pair i (features i and i + C / 2) at time t turns by t * base^(-2i / C), so that products of queries and keys depend on the
    distance of their positions alone.
    """
    half = x.shape[-1] // 2
    rates = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)[:, None] * rates
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); takes and returns [B, T, width]. Attention sees the past alone."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, rotary: bool):
        super().__init__()
        self.heads, self.dropout, self.rotary = heads, dropout, rotary
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.residual_dropout = nn.Dropout(dropout)

    def attend(self, x: Tensor) -> Tensor:
        """Causal self-attention of [B, T, width]."""
        batch, time, width = x.shape
        # [3, B, heads, T, width / heads]
        q, k, v = self.qkv(x).view(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if self.rotary:
            q, k = rotate(q), rotate(k)
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0, is_causal=True)
        return self.proj(x.transpose(1, 2).reshape(batch, time, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.residual_dropout(self.attend(self.norm1(x)))
        return x + self.residual_dropout(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class TransformerLM(nn.Module):
    """Token (and position) embedding -> pre-norm blocks -> norm -> linear layer over the vocabulary, without bias (GPT-2).

    Initialisation as GPT-2's (Radford et al. 2019): weights N(0, 0.02), those that write into the residual stream divided by
    sqrt(2 layers), biases 0, norms 1 and 0.

    Args:
        vocab_size: V, number of different tokens.
        layers: blocks.
        width: features of a token.
        heads: attention heads; they divide ``width``.
        mlp_ratio: hidden units of a block's MLP over ``width``.
        max_length: most tokens in one call.
        positions: "learned" embeddings of each place (``max_length`` x ``width`` weights), or "rotary" (none).
        tied: output weights are the token embedding.
        dropout: on embeddings, attention weights and what each half of a block adds.

    Raises:
        UserError: a size below 1, heads that do not divide ``width``, rotary positions with an odd head width, a dropout
            probability outside [0, 1); in a call, more than ``max_length`` tokens.
    """

    stateful = False

    def __init__(
        self,
        vocab_size: int,
        layers: int = 4,
        width: int = 256,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        max_length: int = 256,
        positions: Literal["learned", "rotary"] = "rotary",
        tied: bool = True,
        dropout: float = 0.1,
    ):
        super().__init__()
        hidden = round(mlp_ratio * width)
        check_positive(vocab_size=vocab_size, layers=layers, width=width, heads=heads, max_length=max_length)
        check_positive(**{"mlp_ratio x width": hidden})
        check_rate(dropout=dropout)
        if width % heads:
            raise UserError(f"heads={heads} must divide width={width}.")
        if positions not in ("learned", "rotary"):
            raise UserError(f"positions={positions!r} must be learned or rotary.")
        if positions == "rotary" and width // heads % 2:
            raise UserError(f"rotary positions need an even width / heads, not {width}/{heads}={width // heads}.")
        self.max_length = max_length
        self.embedding = nn.Embedding(vocab_size, width)
        self.position = nn.Parameter(torch.empty(max_length, width)) if positions == "learned" else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, dropout, positions == "rotary") for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        self._init(layers)

    def _init(self, layers: int) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                into_residual = name.endswith(("proj.weight", "fc2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if into_residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward_features(self, tokens: Tensor) -> Tensor:
        """Normalised outputs of the last block, [B, T, width], for ``tokens`` int64 [B, T]."""
        time = tokens.shape[1]
        if time > self.max_length:
            raise UserError(f"{time} tokens exceed model.max_length={self.max_length}: raise it, or lower dataset.seq_len.")
        x = self.embedding(tokens)
        if self.position is not None:
            x = x + self.position[:time]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of the token after each of ``tokens`` (int64 [B, T]), from it and those before it in the call."""
        return self.head(self.forward_features(tokens))
