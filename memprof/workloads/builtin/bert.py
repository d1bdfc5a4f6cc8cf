"""BERT (Devlin et al. 2019): a post-norm encoder with both pre-training heads.

The parameters have the shapes of transformers' `BertForPreTraining`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memprof.workloads.builtin.layers import embedding, head_width, split_heads
from memprof.workloads.workload import Workload

_POSITIONS = 512  # the number of rows of the published position table
_MASKED = 0.15  # the share of the tokens that are predicted


class SelfAttention(nn.Module):
    """Multi-head self-attention with separate query, key and value projections, as in BERT's checkpoints."""

    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, seq_len, d_model] to the same shape."""
        q, k, v = (split_heads(project(x), self.n_heads) for project in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


class Layer(nn.Module):
    """Attention and a GELU MLP, each inside a residual and followed by a layer norm."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(d_model, n_heads, dropout)
        self.ln_1 = nn.LayerNorm(d_model, eps=1e-12)
        self.up = nn.Linear(d_model, d_ff)
        self.down = nn.Linear(d_ff, d_model)
        self.ln_2 = nn.LayerNorm(d_model, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, seq_len, d_model] to the same shape."""
        x = self.ln_1(x + self.dropout(self.attention(x)))
        out: Tensor = self.ln_2(x + self.dropout(self.down(F.gelu(self.up(x)))))
        return out


class Embeddings(nn.Module):
    """The normalised sum of the token, position and segment embeddings."""

    def __init__(self, d_model: int, positions: int, vocab_size: int, dropout: float) -> None:
        super().__init__()
        self.tokens = embedding(vocab_size, d_model)
        self.positions = embedding(positions, d_model)
        self.segments = embedding(2, d_model)
        self.norm = nn.LayerNorm(d_model, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor, segments: Tensor) -> Tensor:
        """Map token and segment ids [batch, seq_len] to [batch, seq_len, d_model]."""
        x = self.tokens(ids) + self.segments(segments) + self.positions.weight[: ids.shape[1]]
        out: Tensor = self.dropout(self.norm(x))
        return out


class BertForPreTraining(nn.Module):
    """BERT with the masked-token head, tied to the token table, and the next-sentence head."""

    def __init__(
        self,
        n_layers: int,
        d_model: int,
        n_heads: int,
        d_ff: int,
        positions: int,
        vocab_size: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(d_model, positions, vocab_size, dropout)
        self.layers = nn.ModuleList(Layer(d_model, n_heads, d_ff, dropout) for _ in range(n_layers))
        self.pooler = nn.Linear(d_model, d_model)
        self.transform = nn.Linear(d_model, d_model)
        self.norm = nn.LayerNorm(d_model, eps=1e-12)
        self.token_bias = nn.Parameter(torch.zeros(vocab_size))
        self.next_sentence = nn.Linear(d_model, 2)

    def forward(self, ids: Tensor, segments: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the tokens at the masked positions, and whether the second sentence follows the first.

        Args:
            ids: The tokens, [batch, seq_len].
            segments: The sentence that each token belongs to, 0 or 1, [batch, seq_len].
            masked: The positions to predict, [batch, n_masked].

        Returns:
            The logits of the tokens, [batch, n_masked, vocab_size], and of the next sentence, [batch, 2].
        """
        x = self.embeddings(ids, segments)
        for layer in self.layers:
            x = layer(x)
        at_masked = x.gather(1, masked.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        hidden = self.norm(F.gelu(self.transform(at_masked)))
        tokens = F.linear(hidden, self.embeddings.tokens.weight, self.token_bias)
        return tokens, self.next_sentence(torch.tanh(self.pooler(x[:, 0])))


def bert_large(
    n_layers: int = 24,
    d_model: int = 1024,
    n_heads: int = 16,
    d_ff: int = 4096,
    seq_len: int = 512,
    vocab_size: int = 30522,
    dropout: float = 0.1,
) -> Workload:
    """BERT-Large with its pre-training heads (masked tokens, next sentence).

    Args:
        n_layers: The number of encoder layers.
        d_model: The width of the residual stream.
        n_heads: The number of attention heads; it must divide `d_model`.
        d_ff: The width of the MLP.
        seq_len: The number of tokens in one sample; 15 % of them are masked. The position table keeps its 512 rows
            unless this is more.
        vocab_size: The number of rows of the token table, which is also the output layer.
        dropout: The probability of dropout; the published one is 0.1.

    Returns:
        The workload.

    Raises:
        UsageError: The heads do not divide the width.
    """
    head_width(d_model, n_heads)
    n_masked = max(1, round(_MASKED * seq_len))

    def model() -> nn.Module:
        positions = max(seq_len, _POSITIONS)
        return BertForPreTraining(n_layers, d_model, n_heads, d_ff, positions, vocab_size, dropout)

    def batch(batch_size: int) -> dict[str, Tensor]:
        return {
            "ids": torch.randint(vocab_size, (batch_size, seq_len)),
            "segments": torch.randint(2, (batch_size, seq_len)),
            "masked": torch.randint(seq_len, (batch_size, n_masked)),
            "labels": torch.randint(vocab_size, (batch_size, n_masked)),
            "follows": torch.randint(2, (batch_size,)),
        }

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        tokens, follows = model(batch["ids"], batch["segments"], batch["masked"])
        masked_loss = F.cross_entropy(tokens.flatten(0, 1), batch["labels"].flatten())
        return masked_loss + F.cross_entropy(follows, batch["follows"])

    return Workload(model=model, batch=batch, loss=loss, scale="n_layers")
