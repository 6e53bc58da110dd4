"""The blocks of ACT's transformer: positions are added to queries and keys in every layer, norms come last.

Shapes: B frames, L queries, S tokens, D width, H heads.
Source: DETR, arXiv 2005.12872, as ACT, arXiv 2304.13705, uses it.
"""

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Attention of several heads, with its four products as linears of their own, which optimizers and methods see.

    Args:
        width: D.
        heads: H; divides D.
        dropout: share of attention weights and outputs that are left out in training.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return (B, L, D) from (B, L, D) queries and (B, S, D) keys and values."""
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        dropout = self.dropout if self.training else 0.0
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        result: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(-2))
        return result


class FeedForward(nn.Module):
    """Two linears with a ReLU between them.

    Args:
        width: D.
        hidden: width between them.
        dropout: share left out in training.
    """

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, L, D) from (B, L, D)."""
        result: Tensor = self.down_proj(self.dropout(torch.relu(self.up_proj(x))))
        return result


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward; arguments as those of the two."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(width, heads, dropout), FeedForward(width, hidden, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        """Return (B, S, D) from (B, S, D) tokens and (S, D) positions."""
        at = x + place
        x = self.norms[0](x + self.dropout(self.attention(at, at, x)))
        result: Tensor = self.norms[1](x + self.dropout(self.feed_forward(x)))
        return result


class DecoderLayer(nn.Module):
    """Self-attention of the queries, attention to the encoder's tokens, feed-forward; arguments as `EncoderLayer`."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.own, self.cross = Attention(width, heads, dropout), Attention(width, heads, dropout)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, query_place: Tensor, memory: Tensor, place: Tensor) -> Tensor:
        """Return (B, L, D) from (B, L, D) queries, their (L, D) positions, (B, S, D) memory and its (S, D) ones."""
        at = x + query_place
        x = self.norms[0](x + self.dropout(self.own(at, at, x)))
        x = self.norms[1](x + self.dropout(self.cross(x + query_place, memory + place, memory)))
        result: Tensor = self.norms[2](x + self.dropout(self.feed_forward(x)))
        return result
