"""Workloads for several ranks; a rank knows itself by RANK, which is not set for a single process."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from memprof import Workload


class Net(nn.Module):
    """Two blocks between an input and a head, of widths that no world size divides."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(6, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def squared(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) - 1).square().mean()


def parts(width: int = 7) -> Workload:
    """Every rank takes its part of a batch that a single process takes whole."""
    made = iter(range(100))

    def batch(batch_size: int) -> Tensor:
        generator = torch.Generator().manual_seed(next(made))
        if "RANK" not in os.environ:
            return torch.randn(batch_size, 6, generator=generator)
        whole = torch.randn(batch_size * int(os.environ["WORLD_SIZE"]), 6, generator=generator)
        return whole[int(os.environ["RANK"]) * batch_size :][:batch_size]

    return Workload(model=lambda: Net(width), batch=batch, loss=squared)


def _second_rank(act: Callable[[], Any]) -> Workload:
    steps = iter(range(100))

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        if next(steps) == 1 and os.environ["RANK"] == "1":
            act()
        return squared(model, batch)

    return Workload(model=lambda: Net(8), batch=lambda batch_size: torch.randn(batch_size, 6), loss=loss)


def is_killed() -> Workload:
    return _second_rank(lambda: os.kill(os.getpid(), signal.SIGKILL))


def runs_out() -> Workload:
    def run_out() -> None:
        raise MemoryError

    return _second_rank(run_out)


def raises() -> Workload:
    def stop() -> None:
        raise ValueError("no such sample")

    return _second_rank(stop)


def hangs() -> Workload:
    return _second_rank(lambda: time.sleep(1000))


def no_tensor() -> Workload:
    return Workload(model=lambda: Net(8), batch=lambda batch_size: None, loss=lambda model, batch: 1.5)


def has_unused() -> Workload:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = Net(8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    return Workload(model=Half, batch=lambda batch_size: torch.randn(batch_size, 6), loss=squared)


def grows_only_freely() -> Workload:
    """The model can be made only where the process has no limit."""

    def build() -> nn.Module:
        if resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY:
            raise MemoryError
        return Net(8)

    return Workload(model=build, batch=lambda batch_size: torch.randn(batch_size, 6), loss=squared)


def larger_there() -> Workload:
    """The second rank has the longer batches."""

    def batch(batch_size: int) -> Tensor:
        return torch.randn(batch_size * (1 + 9 * int(os.environ["RANK"])), 6)

    return Workload(model=lambda: Net(8), batch=batch, loss=squared)
