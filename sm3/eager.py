"""Keeps `torch.compile` away from functions that must run as they are.

`torch._compile._disable_dynamo` is private, but `torch.optim` uses it too. Unlike the public `torch.compiler.disable`
it does not import the compiler, which takes seconds. It was tested on torch 2.8, 2.13 and 2.15.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that compiled code calls without compiling it. The graph breaks at the call.

    Args:
        function: the function to protect.
    """
    try:
        from torch._compile import _disable_dynamo
    except ImportError:
        disabled: Callable[P, R] = torch.compiler.disable(function)
        return disabled
    return _disable_dynamo(function)
