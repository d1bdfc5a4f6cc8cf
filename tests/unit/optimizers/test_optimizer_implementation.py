"""The name of what ran, from the operators that a dispatch mode saw within `step()`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from memprof.documents.optimizer_spec import parse_optimizer
from memprof.optimizers.implementation import implementation_name
from memprof.optimizers.registry import build_optimizer


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def stepped(spec: str) -> tuple[torch.optim.Optimizer, set[str], set[str]]:
    """Return an optimizer and the operators of its second step, as a mode and as the profiler name them."""
    weight = nn.Parameter(torch.randn(4, 3))
    optimizer = build_optimizer(parse_optimizer(spec), [("weight", weight)])
    weight.grad = torch.randn(4, 3)
    optimizer.step()
    with Operators() as operators:
        optimizer.step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        optimizer.step()
    return optimizer, operators.names, {event.key for event in profiler.key_averages()}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("adam", "for-loop"),  # torch's default on the CPU
        ("adam,foreach=true", "foreach"),
        ("adam,fused=true", "fused"),
        ("adamw,fused=true", "fused"),
        ("adagrad,fused=true", "fused"),
        ("sgd,fused=true", "fused"),
        ("sgd,momentum=0.9,foreach=true", "foreach"),
        ("adafactor,foreach=true", "foreach"),
        ("adafactor", "for-loop"),
        ("rprop,foreach=true", "foreach"),
    ],
)
def test_name_is_what_ran(spec: str, expected: str) -> None:
    optimizer, dispatched, profiled = stepped(spec)
    assert implementation_name(optimizer, dispatched) == expected
    assert implementation_name(optimizer, profiled) == expected


def test_sm3_tells_its_kernel() -> None:
    optimizer, dispatched, _ = stepped("sm3")
    assert implementation_name(optimizer, dispatched) == optimizer.kernel  # type: ignore[attr-defined]


def test_only_a_string_is_a_kernels_name() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    optimizer.kernel = lambda: None  # type: ignore[attr-defined]
    assert implementation_name(optimizer, []) == "for-loop"


def test_amp_unscaling_is_not_a_foreach_step() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    assert implementation_name(optimizer, ["aten::_amp_foreach_non_finite_check_and_unscale_"]) == "for-loop"
