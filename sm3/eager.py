"""Keeps `torch.compile` away from what is to run as it is.

`torch._compile._disable_dynamo` is private, but `torch.optim` builds on it, and unlike the public
`torch.compiler.disable` it does not import the compiler, which takes seconds. Tested on torch 2.8, 2.13 and 2.15.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that a compiled caller calls as it is: its graph breaks there."""
    try:
        from torch._compile import _disable_dynamo
    except ImportError:
        disabled: Callable[P, R] = torch.compiler.disable(function)
        return disabled
    return _disable_dynamo(function)
