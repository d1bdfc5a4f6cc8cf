"""GPT-2 (Radford et al. 2019): a pre-norm decoder with learned positions, whose output is tied to the token table."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memprof.workloads.builtin.layers import Attention, embedding, head_width
from memprof.workloads.workload import Workload

_POSITIONS = 1024  # the number of rows of the published position table


class GPT2Block(nn.Module):
    """Attention and a GELU MLP of four times the width, each after a layer norm and inside a residual."""

    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads, dropout, causal=True)
        self.ln_2 = nn.LayerNorm(d_model)
        self.up = nn.Linear(d_model, 4 * d_model)
        self.down = nn.Linear(4 * d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, seq_len, d_model] to the same shape."""
        x = x + self.dropout(self.attention(self.ln_1(x)))
        mlp = self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh"))
        out: Tensor = x + self.dropout(mlp)
        return out


class GPT2(nn.Module):
    """GPT-2 with its language-model head."""

    def __init__(
        self, n_layers: int, d_model: int, n_heads: int, positions: int, vocab_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.tokens = embedding(vocab_size, d_model)
        self.positions = embedding(positions, d_model, std=0.01)
        self.dropout = nn.Dropout(dropout)
        blocks = [GPT2Block(d_model, n_heads, dropout) for _ in range(n_layers)]
        _shrink_residuals(blocks)
        self.blocks = nn.ModuleList(blocks)
        self.ln_f = nn.LayerNorm(d_model)

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids [batch, seq_len] to logits [batch, seq_len, vocab_size]."""
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.ln_f(x), self.tokens.weight)


@torch.no_grad()
def _shrink_residuals(blocks: list[GPT2Block]) -> None:
    """Scale the weights that write to the residual stream by 1/sqrt(number of such layers); paper section 2.3."""
    for block in blocks:
        block.attention.out.weight.div_(math.sqrt(2 * len(blocks)))
        block.down.weight.div_(math.sqrt(2 * len(blocks)))


def gpt2(
    n_layers: int = 12,
    d_model: int = 768,
    n_heads: int = 12,
    seq_len: int = 1024,
    vocab_size: int = 50257,
    dropout: float = 0.1,
) -> Workload:
    """GPT-2 language model.

    Args:
        n_layers: The number of transformer blocks.
        d_model: The width of the residual stream.
        n_heads: The number of attention heads; it must divide `d_model`.
        seq_len: The number of tokens in one sample. The position table keeps its 1,024 rows unless this is more.
        vocab_size: The number of rows of the token table, which is also the output layer.
        dropout: The probability of dropout; the published one is 0.1.

    Returns:
        The workload.

    Raises:
        UsageError: The heads do not divide the width.
    """
    head_width(d_model, n_heads)

    def model() -> nn.Module:
        return GPT2(n_layers, d_model, n_heads, max(seq_len, _POSITIONS), vocab_size, dropout)

    def batch(batch_size: int) -> dict[str, Tensor]:
        shape = (batch_size, seq_len)
        return {"ids": torch.randint(vocab_size, shape), "labels": torch.randint(vocab_size, shape)}

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch["ids"]).flatten(0, 1), batch["labels"].flatten())

    return Workload(model=model, batch=batch, loss=loss, scale="n_layers")
