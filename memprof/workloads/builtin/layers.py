"""Layers that several built-in workloads share: attention with PyTorch's fused kernels, and embedding tables."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memprof.errors import UsageError


def embedding(rows: int, width: int, std: float = 0.02) -> nn.Embedding:
    """Return an embedding table of shape [rows, width] with weights drawn from N(0, std).

    The weights are drawn once. `nn.Embedding` itself would first draw them from N(0, 1).
    """
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width).normal_(std=std))


def head_width(d_model: int, n_heads: int) -> int:
    """Return the width of one attention head.

    Raises:
        UsageError: The heads do not divide the width of the model.
    """
    if d_model % n_heads:
        raise UsageError(f"n_heads={n_heads} does not divide d_model={d_model}; set one of them to match")
    return d_model // n_heads


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """Return a view of shape [batch, n_heads, length, width] of a tensor of shape [batch, length, n_heads * width]."""
    return x.view(*x.shape[:-1], n_heads, -1).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head attention with one fused [3 * d_model, d_model] input projection, as in PyTorch's own.

    Args:
        d_model: The width of the model.
        n_heads: The number of heads; it must divide `d_model`.
        dropout: The probability with which an attention weight is dropped in training.
        causal: Whether a position sees only itself and the positions before it.
    """

    def __init__(self, d_model: int, n_heads: int, dropout: float = 0.0, causal: bool = False) -> None:
        super().__init__()
        head_width(d_model, n_heads)
        self.n_heads, self.dropout, self.causal = n_heads, dropout, causal
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """Attend from x, [batch, length, d_model], to itself or to memory, [batch, length_2, d_model]."""
        q, k, v = (split_heads(part, self.n_heads) for part in self._project(x, memory))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=self.causal)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out

    def _project(self, x: Tensor, memory: Tensor | None) -> tuple[Tensor, ...]:
        if memory is None:
            return tuple(self.qkv(x).chunk(3, dim=-1))
        width = x.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(x, weight[:width], bias[:width])
        return (q, *F.linear(memory, weight[width:], bias[width:]).chunk(2, dim=-1))
