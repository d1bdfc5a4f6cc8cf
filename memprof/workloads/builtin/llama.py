"""Llama 2 and 3 (Touvron et al. 2023, Grattafiori et al. 2024): RMSNorm, rotary positions, SwiGLU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memprof.errors import UsageError, did_you_mean
from memprof.workloads.builtin.layers import embedding, head_width, split_heads
from memprof.workloads.builtin.llama_sizes import LLAMA_SIZES
from memprof.workloads.workload import Workload

_EPS = 1e-5
_ROPE_BASE = 500_000.0  # the base of Llama 3; Llama 2 has 10,000, which changes no size


def rotary_tables(length: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the cosines and the sines for `rotate`, each [length, width] (Su et al. 2021, section 3.4.2)."""
    rates = _ROPE_BASE ** (-torch.arange(0, width, 2) / width)
    angles = (torch.arange(length).unsqueeze(1) * rates).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + width / 2) of x, [batch, heads, length, width], by the angles of the position."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class GroupedQueryAttention(nn.Module):
    """Causal attention in which several query heads share one key and value head."""

    def __init__(self, d_model: int, n_heads: int, n_kv_heads: int) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads
        width = head_width(d_model, n_heads)
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, n_kv_heads * width, bias=False)
        self.value = nn.Linear(d_model, n_kv_heads * width, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map [batch, seq_len, d_model] to the same shape."""
        q = rotate(split_heads(self.query(x), self.n_heads), cos, sin)
        k = rotate(split_heads(self.key(x), self.n_kv_heads), cos, sin)
        v = split_heads(self.value(x), self.n_kv_heads)
        grouped = self.n_kv_heads != self.n_heads
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


class LlamaBlock(nn.Module):
    """Attention and a SwiGLU MLP, each after an RMS norm and inside a residual."""

    def __init__(self, d_model: int, n_heads: int, n_kv_heads: int, d_ff: int) -> None:
        super().__init__()
        self.norm_1 = nn.RMSNorm(d_model, eps=_EPS)
        self.attention = GroupedQueryAttention(d_model, n_heads, n_kv_heads)
        self.norm_2 = nn.RMSNorm(d_model, eps=_EPS)
        self.gate = nn.Linear(d_model, d_ff, bias=False)
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map [batch, seq_len, d_model] to the same shape."""
        x = x + self.attention(self.norm_1(x), cos, sin)
        y = self.norm_2(x)
        out: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return out


class Llama(nn.Module):
    """Llama with its language-model head, which the small models tie to the token table."""

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        n_layers: int,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        d_ff: int,
        vocab_size: int,
        tie_embeddings: bool,
        seq_len: int,
    ) -> None:
        super().__init__()
        self.tokens = embedding(vocab_size, d_model)
        cos, sin = rotary_tables(seq_len, d_model // n_heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.blocks = nn.ModuleList(LlamaBlock(d_model, n_heads, n_kv_heads, d_ff) for _ in range(n_layers))
        self.norm = nn.RMSNorm(d_model, eps=_EPS)
        self.output = None if tie_embeddings else nn.Linear(d_model, vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids [batch, seq_len] to logits [batch, seq_len, vocab_size]."""
        x = self.tokens(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, cos, sin)
        x = self.norm(x)
        logits: Tensor = F.linear(x, self.tokens.weight) if self.output is None else self.output(x)
        return logits


def llama(
    size: str = "1b",
    seq_len: int = 2048,
    n_layers: int | None = None,
    d_model: int | None = None,
    n_heads: int | None = None,
    n_kv_heads: int | None = None,
    d_ff: int | None = None,
    vocab_size: int | None = None,
    tie_embeddings: bool | None = None,
) -> Workload:
    """Llama language model, 1B to 70B.

    Args:
        size: The published model that gives the other knobs their defaults: 1b, 3b, 7b, 8b, 13b or 70b.
        seq_len: The number of tokens in one sample.
        n_layers: The number of transformer blocks.
        d_model: The width of the residual stream.
        n_heads: The number of query heads. It must divide `d_model`, and the width of a head must be even.
        n_kv_heads: The number of key and value heads; it must divide `n_heads`.
        d_ff: The width of the MLP.
        vocab_size: The number of rows of the token table.
        tie_embeddings: Whether the token table is also the output layer.

    Returns:
        The workload.

    Raises:
        UsageError: The size is unknown, or the numbers of heads do not divide.
    """
    if size not in LLAMA_SIZES:
        raise UsageError(f"llama has no size {size!r}{did_you_mean(size, list(LLAMA_SIZES))}")
    given = {
        "n_layers": n_layers,
        "d_model": d_model,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "d_ff": d_ff,
        "vocab_size": vocab_size,
        "tie_embeddings": tie_embeddings,
    }
    shape: dict[str, Any] = {name: LLAMA_SIZES[size][name] if value is None else value for name, value in given.items()}
    _check_heads(shape)
    rows = int(shape["vocab_size"])

    def model() -> nn.Module:
        return Llama(**shape, seq_len=seq_len)

    def batch(batch_size: int) -> dict[str, Tensor]:
        return {name: torch.randint(rows, (batch_size, seq_len)) for name in ("ids", "labels")}

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch["ids"]).flatten(0, 1), batch["labels"].flatten())

    return Workload(model=model, batch=batch, loss=loss, scale="n_layers")


def _check_heads(shape: dict[str, Any]) -> None:
    heads, kv_heads = shape["n_heads"], shape["n_kv_heads"]
    if head_width(shape["d_model"], heads) % 2:
        raise UsageError(f"d_model={shape['d_model']} over n_heads={heads} is odd; rotary positions need it even")
    if heads % kv_heads:
        raise UsageError(f"n_kv_heads={kv_heads} does not divide n_heads={heads}; set one of them to match")
