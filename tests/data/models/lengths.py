"""Workloads whose samples differ in length from batch to batch; the tests name them as `lengths.py:ATTR`."""

from __future__ import annotations

import random
import time

import torch
from torch import Tensor, nn

from memprof import Workload

SHORTEST, LONGEST = 8, 128


class Tagger(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Embedding(100, width), nn.Linear(width, 100))

    def forward(self, ids: Tensor) -> Tensor:
        return self.layers(ids)


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch["ids"]).flatten(0, 1), batch["target"].flatten())


def ids_of(batch_size: int, length: int) -> dict[str, Tensor]:
    ids = torch.randint(100, (batch_size, length))
    return {"ids": ids, "target": ids}


def make_batch(batch_size: int) -> dict[str, Tensor]:
    """Short samples mostly, as a shuffled data set gives them."""
    return ids_of(batch_size, random.randint(SHORTEST, LONGEST // 4))


def longest_batch(batch_size: int, width: int = 64) -> dict[str, Tensor]:
    return ids_of(batch_size, LONGEST + (width == 1))


def undeclared(width: int = 64) -> Workload:
    return Workload(model=lambda: Tagger(width), batch=make_batch, loss=loss, scale="width")


def declared(width: int = 64) -> Workload:
    return Workload(model=lambda: Tagger(width), batch=make_batch, longest_batch=longest_batch, loss=loss)


def stuck(width: int = 64) -> Workload:
    """No batch of more than 200 is ever made."""

    def batch(batch_size: int) -> dict[str, Tensor]:
        if batch_size > 200:
            time.sleep(600)
        return ids_of(batch_size, LONGEST)

    return Workload(model=lambda: Tagger(width), batch=batch, loss=loss)


def deadly(width: int = 64) -> Workload:
    """No worker survives a batch of more than 200."""

    def batch(batch_size: int) -> dict[str, Tensor]:
        if batch_size > 200:
            import os

            os._exit(9)
        return ids_of(batch_size, LONGEST)

    return Workload(model=lambda: Tagger(width), batch=batch, loss=loss)
