"""What SM3's step is timed against, and how: shared by the table and by the pytest benchmarks."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Adafactor, Adagrad, Adam

from sm3 import SM3
from sm3.kernels import compiler

Make = Callable[[list[nn.Parameter]], Any]


def optimizers() -> dict[str, Make]:
    """Return the optimizers to compare, those of packages that are not installed left out."""
    found: dict[str, Make] = {"SM3 (chunked)": lambda p: SM3(p, kernel="chunked")}
    if compiler.library() is not None:
        found["SM3 (native)"] = lambda p: SM3(p, kernel="native")
        found["SM3 (native), momentum 0.9"] = lambda p: SM3(p, kernel="native", momentum=0.9)
    found["SM3 (chunked), momentum 0.9"] = lambda p: SM3(p, kernel="chunked", momentum=0.9)
    found["Adam (for-loop)"] = lambda p: Adam(p, foreach=False)
    found["Adam (foreach)"] = lambda p: Adam(p, foreach=True)
    found["Adam (fused)"] = lambda p: Adam(p, fused=True)
    found["Adagrad (for-loop)"] = lambda p: Adagrad(p, foreach=False)
    found["Adagrad (fused)"] = lambda p: Adagrad(p, fused=True)
    found["Adafactor (for-loop)"] = lambda p: Adafactor(p, foreach=False)
    if importlib.util.find_spec("pytorch_optimizer"):
        import pytorch_optimizer

        found["pytorch_optimizer SM3 (for-loop)"] = lambda p: pytorch_optimizer.SM3(p, foreach=False)
        found["pytorch_optimizer SM3 (foreach)"] = lambda p: pytorch_optimizer.SM3(p, foreach=True)
    if importlib.util.find_spec("SM3"):
        found["torch-SM3"] = importlib.import_module("SM3").SM3
    return found


def matrix() -> list[tuple[int, ...]]:
    """Return one 4096 x 4096 tensor."""
    return [(4096, 4096)]


def gpt2(layers: int = 12, width: int = 768) -> list[tuple[int, ...]]:
    """Return the shapes of GPT-2's 148 parameters, 124.4 M entries, as Hugging Face's Conv1D keeps them."""
    norm: list[tuple[int, ...]] = [(width,), (width,)]
    attention = [(width, 3 * width), (3 * width,), (width, width), (width,)]
    feedforward = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(50257, width), (1024, width), *layers * [*norm, *attention, *norm, *feedforward], *norm]


def parameters(shapes: Iterable[tuple[int, ...]]) -> list[nn.Parameter]:
    """Return parameters of these shapes with gradients."""
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for param in params:
        param.grad = torch.randn(param.shape)
    return params


def seconds(
    contenders: dict[str, Any], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return the shortest time of a step of each optimizer, after two that create state.

    They take turns, so that other work on the machine meets all of them; and it only adds, hence the shortest.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 2):
        for name, optimizer in contenders.items():
            start = clock()
            optimizer.step()
            times[name].append(clock() - start)
    return {name: min(taken[2:]) for name, taken in times.items()}


def state_bytes(optimizer: Any) -> int:
    """Return the bytes of all tensors in an optimizer's state, lists included."""
    total, left = 0, [list(state.values()) for state in optimizer.state.values()]
    while left:
        value = left.pop()
        if isinstance(value, torch.Tensor):
            total += value.nbytes
        elif isinstance(value, list | tuple):
            left.extend(value)
        elif isinstance(value, dict):
            left.extend(value.values())
    return total
