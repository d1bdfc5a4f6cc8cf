"""Transformer-Big for translation, as the SM3 paper trains it (Anil et al. 2019, section 5.1).

It has 6 + 6 layers of width 1,024 with feed-forward layers of width 8,192 and 16 heads, and three untied tables of
32,000 word pieces.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memprof.workloads.builtin.layers import Attention, embedding, head_width
from memprof.workloads.workload import Workload

_LABEL_SMOOTHING = 0.1


class FeedForward(nn.Module):
    """Two linear layers with ReLU and dropout between them."""

    def __init__(self, d_model: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_ff)
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, length, d_model] to the same shape."""
        out: Tensor = self.down(self.dropout(F.relu(self.up(x))))
        return out


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each after a layer norm and inside a residual."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads, dropout)
        self.ln_2 = nn.LayerNorm(d_model)
        self.feed_forward = FeedForward(d_model, d_ff, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, length, d_model] to the same shape."""
        x = x + self.dropout(self.attention(self.ln_1(x)))
        out: Tensor = x + self.dropout(self.feed_forward(self.ln_2(x)))
        return out


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder's output, and feed-forward."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads, dropout, causal=True)
        self.ln_2 = nn.LayerNorm(d_model)
        self.cross_attention = Attention(d_model, n_heads, dropout)
        self.ln_3 = nn.LayerNorm(d_model)
        self.feed_forward = FeedForward(d_model, d_ff, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Map x, [batch, length, d_model], to the same shape, given memory, [batch, source length, d_model]."""
        x = x + self.dropout(self.attention(self.ln_1(x)))
        x = x + self.dropout(self.cross_attention(self.ln_2(x), memory))
        out: Tensor = x + self.dropout(self.feed_forward(self.ln_3(x)))
        return out


def sinusoids(length: int, d_model: int) -> Tensor:
    """Return the fixed position encodings [length, d_model] of Vaswani et al. 2017, section 3.5.

    All sines come before all cosines, which permutes the columns of the paper. An odd width ends in a zero.
    """
    half = d_model // 2
    rates = torch.exp(torch.arange(half) * (-math.log(10_000.0) / max(half, 1)))
    angles = torch.arange(length).unsqueeze(1) * rates
    return F.pad(torch.cat((angles.sin(), angles.cos()), dim=1), (0, d_model - 2 * half))


class Transformer(nn.Module):
    """Encoder and decoder with a source table, a target table and an output table."""

    positions: Tensor

    def __init__(
        self,
        n_layers: int,
        d_model: int,
        n_heads: int,
        d_ff: int,
        seq_len: int,
        vocab_size: int,
        dropout: float,
    ) -> None:
        super().__init__()
        sizes = (d_model, n_heads, d_ff, dropout)
        self.source = embedding(vocab_size, d_model, std=d_model**-0.5)
        self.target = embedding(vocab_size, d_model, std=d_model**-0.5)
        self.register_buffer("positions", sinusoids(seq_len, d_model), persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(n_layers))
        self.encoder_norm = nn.LayerNorm(d_model)
        self.decoder = nn.ModuleList(DecoderLayer(*sizes) for _ in range(n_layers))
        self.decoder_norm = nn.LayerNorm(d_model)
        self.output = nn.Linear(d_model, vocab_size, bias=False)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Map source and target ids [batch, length] to logits [batch, target length, vocab_size]."""
        memory = self._embed(self.source, source)
        for layer in self.encoder:
            memory = layer(memory)
        memory = self.encoder_norm(memory)
        x = self._embed(self.target, target)
        for layer in self.decoder:
            x = layer(x, memory)
        logits: Tensor = self.output(self.decoder_norm(x))
        return logits

    def _embed(self, table: nn.Embedding, ids: Tensor) -> Tensor:
        x = table(ids) * math.sqrt(table.embedding_dim) + self.positions[: ids.shape[1]]
        out: Tensor = self.dropout(x)
        return out


def transformer_big(
    n_layers: int = 6,
    d_model: int = 1024,
    n_heads: int = 16,
    d_ff: int = 8192,
    seq_len: int = 256,
    vocab_size: int = 32000,
    dropout: float = 0.1,
) -> Workload:
    """Transformer-Big translation model of the SM3 paper.

    Args:
        n_layers: The number of layers of the encoder; the decoder has as many.
        d_model: The width of the residual stream.
        n_heads: The number of attention heads; it must divide `d_model`.
        d_ff: The width of the feed-forward layers.
        seq_len: The number of tokens in one sample, on the source side and on the target side.
        vocab_size: The number of rows of each of the three tables.
        dropout: The probability of dropout.

    Returns:
        The workload.

    Raises:
        UsageError: The heads do not divide the width.
    """
    head_width(d_model, n_heads)

    def model() -> nn.Module:
        return Transformer(n_layers, d_model, n_heads, d_ff, seq_len, vocab_size, dropout)

    def batch(batch_size: int) -> dict[str, Tensor]:
        shape = (batch_size, seq_len)
        return {name: torch.randint(vocab_size, shape) for name in ("source", "target", "labels")}

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        logits = model(batch["source"], batch["target"]).flatten(0, 1)
        return F.cross_entropy(logits, batch["labels"].flatten(), label_smoothing=_LABEL_SMOOTHING)

    return Workload(model=model, batch=batch, loss=loss, scale="n_layers")
