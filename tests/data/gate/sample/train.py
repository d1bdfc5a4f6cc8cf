"""A small training program, as a user of the gate would have it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memprof import Workload


class Block(nn.Module):
    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, factor * width), nn.GELU(), nn.Linear(factor * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class Model(nn.Module):
    def __init__(self, n_layers: int, width: int, factor: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(width, factor) for _ in range(n_layers))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def build(n_layers: int = 4, width: int = 256) -> Workload:
    def batch(batch_size: int) -> dict[str, Tensor]:
        return {"x": torch.randn(batch_size, 64, width), "y": torch.randint(0, 10, (batch_size, 64))}

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch["x"]).flatten(0, 1), batch["y"].flatten())

    return Workload(model=lambda: Model(n_layers, width, factor=4), batch=batch, loss=loss, scale="n_layers")
