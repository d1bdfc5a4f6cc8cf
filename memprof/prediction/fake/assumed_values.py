"""Computes conditions on unknown numbers from the assumption that every unknown number is 1.

A guard such as `if not torch.isfinite(loss): raise` must see what it would see in a training that goes well. So a
condition is computed with the number 1 if it depends on single numbers, or if it checks for NaN or infinity.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from memprof.prediction.fake.known_values import is_fake

aten = torch.ops.aten
_MARK = "_memprof_expected"  # on the storage of a fake tensor: what every entry is expected to be
_FALSE = {aten.isnan.default, aten.isinf.default, aten.isneginf.default, aten.isposinf.default}
_ALL = {aten.all.default, aten.all.dim, aten.all.dims}
_EQUAL, _DIFFERENT = {aten.eq.Tensor, aten.eq.Scalar}, {aten.ne.Tensor, aten.ne.Scalar}


def expected_of(tensor: Tensor) -> bool | int | None:
    """Return the value that every entry of a fake tensor is expected to have; None if no value is expected.

    Args:
        tensor: A fake tensor.
    """
    value: bool | int | None = getattr(tensor.untyped_storage(), _MARK, None)
    return value


def expect(output: Any, func: Any, args: tuple[Any, ...]) -> None:
    """Note the expected value of an operator's output, if one follows from its arguments.

    Args:
        output: A fake tensor of booleans or of one entry.
        func: The operator that made it.
        args: The arguments of the operator.
    """
    if not isinstance(output, Tensor):
        return
    value = _followed(func, args, output)
    if value is not None:
        setattr(output.untyped_storage(), _MARK, value)


def _followed(func: Any, args: tuple[Any, ...], output: Tensor) -> bool | int | None:
    if func in _FALSE:
        return False
    if func in _EQUAL or func in _DIFFERENT:
        same = args[0] is args[1]
        endless = isinstance(args[1], float) and math.isinf(args[1])
        if same or endless:
            return same == (func in _EQUAL)
    tensors = [value for value in args if isinstance(value, Tensor)]
    stands = [_stand_in(tensor) for tensor in tensors]
    if any(stand is None for stand in stands):
        return True if func in _ALL else None
    if output.dtype is not torch.bool and all(expected_of(tensor) is None for tensor in tensors):
        return None
    left = iter(stands)
    try:
        result = func(*(next(left) if isinstance(value, Tensor) else value for value in args))
        return bool(result) if output.dtype is torch.bool else int(result)
    except (RuntimeError, TypeError, ValueError, IndexError, OverflowError):
        return None


def _stand_in(tensor: Tensor) -> Tensor | None:
    """Return one entry of a tensor whose entries are all the same; None if they are not."""
    if tensor.layout is not torch.strided:
        return None
    if not is_fake(tensor):
        return tensor.reshape(()) if tensor.numel() == 1 else None
    expected = expected_of(tensor)
    if expected is None and (tensor.numel() != 1 or tensor.dtype is torch.bool):
        return None
    return torch.tensor(1 if expected is None else expected, dtype=tensor.dtype)
