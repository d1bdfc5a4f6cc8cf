"""Workloads that go wrong in one way each; the tests name them as `faulty.py:ATTR`."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
from torch import nn

from memprof import Workload


def _linear_workload(loss: Any = None, model: Any = None) -> Workload:
    return Workload(
        model=model or (lambda: nn.Linear(8, 4)),
        batch=lambda batch_size: torch.randn(batch_size, 8),
        loss=loss or (lambda model, batch: model(batch).square().mean()),
    )


def good(width: int = 8) -> Workload:
    return _linear_workload()


def without_kernel() -> Workload:
    return _linear_workload(loss=lambda model, batch: model(batch).to_sparse().to_dense().square().mean())


def builder_raises() -> Workload:
    def build() -> nn.Module:
        raise ValueError("no such layer")

    return _linear_workload(model=build)


def loss_is_a_vector() -> Workload:
    return _linear_workload(loss=lambda model, batch: model(batch).sum(1))


def loss_is_a_float() -> Workload:
    return _linear_workload(loss=lambda model, batch: 1.5)


def loss_is_detached() -> Workload:
    return _linear_workload(loss=lambda model, batch: model(batch).mean().detach())


def loss_is_nan() -> Workload:
    return _linear_workload(loss=lambda model, batch: model(batch).mean() * float("nan"))


def forward_raises() -> Workload:
    return _linear_workload(loss=lambda model, batch: model(batch[:, :3]).mean())


def no_parameters() -> Workload:
    return _linear_workload(model=nn.ReLU)


def frozen() -> Workload:
    return _linear_workload(model=lambda: nn.Linear(8, 4).requires_grad_(False))


def complex_parameters() -> Workload:
    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch.to(torch.complex64)).abs().mean()

    return _linear_workload(model=lambda: nn.Linear(8, 4, dtype=torch.complex64), loss=loss)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(ids))


def tied() -> Workload:
    return Workload(
        model=Tied,
        batch=lambda batch_size: torch.randint(0, 50, (batch_size, 6)),
        loss=lambda model, ids: model(ids).square().mean(),
    )


def sparse() -> Workload:
    return Workload(
        model=lambda: nn.Embedding(100, 8, sparse=True),
        batch=lambda batch_size: torch.randint(0, 100, (batch_size,)),
        loss=lambda model, ids: model(ids).square().mean(),
    )


class Parricide(torch.optim.SGD):
    """Ends the process that started this one, and with `both` itself."""

    def __init__(self, params: Any, lr: float = 0.1, both: bool = False) -> None:
        super().__init__(params, lr)
        self.both = both

    def step(self, closure: Any = None) -> Any:
        os.kill(os.getppid(), signal.SIGKILL)
        if self.both:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(closure)


class Fatal(torch.optim.SGD):
    """Kills its own process in the second step."""

    def step(self, closure: Any = None) -> Any:
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(closure)


class Crash(torch.optim.SGD):
    """Ends its process without a word."""

    def step(self, closure: Any = None) -> Any:
        os._exit(7)


class Greedy(torch.optim.SGD):
    """Asks for more memory than there is."""

    def step(self, closure: Any = None) -> Any:
        self.hoard = torch.empty(1 << 50, dtype=torch.uint8)


class Broken(torch.optim.SGD):
    """Raises in its step."""

    def step(self, closure: Any = None) -> Any:
        raise RuntimeError("this optimizer is broken")


class Slow(torch.optim.SGD):
    """Never gets anywhere; the interrupt test stops it."""

    def step(self, closure: Any = None) -> Any:
        import time

        time.sleep(120)


def chatty() -> Workload:
    print("this line must not reach stdout")
    return _linear_workload()
