"""The checks of a parameter group's options. Each refusal is one sentence."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .kernels.inner import has_data
from .kernels.task import MIN_EPS

OPTIONS = frozenset(
    (
        "lr",
        "momentum",
        "beta",
        "eps",
        "weight_decay",
        "maximize",
        "variant",
        "momentum_dtype",
        "cover",
        "kernel",
    )
)
KERNELS = ("auto", "triton", "native", "chunked")
MOMENTUM_DTYPES = ("float32", "bfloat16", "int8")


def momentum_dtype_name(dtype: torch.dtype | str) -> str:
    """Return the name of a momentum dtype, which is what checkpoints store.

    Args:
        dtype: a dtype or its name.

    Returns:
        "float32", "bfloat16" or "int8".

    Raises:
        ValueError: the dtype is another one.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in MOMENTUM_DTYPES:
        raise ValueError(f"momentum_dtype must be one of {', '.join(MOMENTUM_DTYPES)}, not {name}")
    return name


def momentum_dtype(group: dict[str, Any]) -> torch.dtype:
    """Return the dtype of a group's momentum. It works too if the option was set to a dtype after construction.

    Args:
        group: a parameter group of the optimizer.

    Raises:
        ValueError: the momentum cannot have the group's dtype.
    """
    dtype: torch.dtype = getattr(torch, momentum_dtype_name(group["momentum_dtype"]))
    return dtype


def check_group(group: dict[str, Any]) -> None:
    """Check the options and the parameters of one group.

    Args:
        group: a parameter group of the optimizer.

    Raises:
        ValueError: an option is out of its range.
        TypeError: an option is not a number, or a parameter is complex.
    """
    lr = group["lr"]
    for option in ("lr", "momentum", "beta", "eps", "weight_decay"):
        if not isinstance(group[option], Real) and not (option == "lr" and isinstance(lr, Tensor)):
            raise TypeError(f"{option} must be a number, not {group[option]!r}")
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"lr as a tensor must have one element, not {lr.numel()}")
        lr = float(lr) if lr.is_cpu and has_data(lr) else 0.0  # the host would have to wait for another device
    if not 0.0 <= lr < math.inf:
        raise ValueError(f"lr must be a finite number of at least 0, not {lr}")
    for option in ("momentum", "beta"):
        if not 0.0 <= group[option] < 1.0:
            raise ValueError(f"{option} must be at least 0 and less than 1, not {group[option]}")
    if not MIN_EPS <= group["eps"] < math.inf:
        raise ValueError(f"eps must be a finite number of at least 2**-63, not {group['eps']}")
    if not 0.0 <= group["weight_decay"] < math.inf:
        raise ValueError(f"weight_decay must be a finite number of at least 0, not {group['weight_decay']}")
    if group["variant"] not in ("I", "II"):
        raise ValueError(f'variant must be "I" or "II", not {group["variant"]!r}')
    if group["kernel"] not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, not {group['kernel']!r}")
    if any(param.is_complex() for param in group["params"]):
        raise TypeError("SM3 does not take complex parameters: optimize torch.view_as_real(parameter) instead")
