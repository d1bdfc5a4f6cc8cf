"""Trains a small GPT with PyTorch's CUDA code and prints the allocator's history: `real_training.py PRECISION`.

Started in the environment of `programs.without_gpu(..., null_gpu=True)`; nothing is computed, everything is allocated.
"""

from __future__ import annotations

import json
import sys

import torch
from torch import nn
from torch.nn import functional as F

STEPS, BATCH, TOKENS, WIDTH, HEADS, LAYERS, VOCABULARY = 2, 4, 128, 256, 4, 3, 8192


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down, self.dropout = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.attention(self.before(x)).split(WIDTH, 2)
        heads = [part.view(BATCH, TOKENS, HEADS, -1).transpose(1, 2) for part in parts]
        attended = F.scaled_dot_product_attention(*heads, is_causal=True, dropout_p=0.1)
        x = x + self.dropout(self.out(attended.transpose(1, 2).reshape(BATCH, TOKENS, WIDTH)))
        return x + self.dropout(self.down(F.gelu(self.up(self.between(x)))))


def main(precision: str) -> None:
    torch.cuda.memory._record_memory_history(context=None, max_entries=10**6)
    with torch.device("cuda"):
        layers = [Layer() for _ in range(LAYERS)]
        model = nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), *layers, nn.Linear(WIDTH, VOCABULARY))
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(STEPS):
        ids = torch.zeros(BATCH, TOKENS, dtype=torch.long, device="cuda")
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    stats = torch.cuda.memory_stats()
    wanted = ("allocated", "requested", "active", "reserved")
    trace = torch.cuda.memory._snapshot()["device_traces"][0]
    history = [[one["action"], one["addr"], one["size"]] for one in trace if one["action"] != "snapshot"]
    peaks = {f"peak_{name}": stats[f"{name}_bytes.all.peak"] for name in wanted}
    print(json.dumps({"torch": torch.__version__, "stats": peaks, "history": history}))


if __name__ == "__main__":
    main(sys.argv[1])
