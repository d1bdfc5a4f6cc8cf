"""Operators whose output size depends on the data. The largest possible output is predicted, and a note says so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from memprof.prediction.fake.tensors import Layout, Result

aten = torch.ops.aten
_LONG = torch.int64


def _flat(*parts: tuple[tuple[int, ...], torch.dtype]) -> Result:
    layouts = []
    sizes = []
    for number, (size, dtype) in enumerate(parts):
        stride = tuple(math.prod(size[place + 1 :]) for place in range(len(size)))
        layouts.append(Layout(size, stride, dtype, 0, number))
        sizes.append(math.prod(size) * dtype.itemsize)
    shape = layouts[0] if len(layouts) == 1 else tuple(layouts)
    return Result(tuple(sizes), shape, entries=max(math.prod(size) for size, _ in parts), kind="floats")


def _nonzero(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Result:
    tensor: Tensor = args[0]
    return _flat(((tensor.numel(), tensor.dim()), _LONG))


def _masked_select(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Result:
    entries = math.prod(torch.broadcast_shapes(args[0].shape, args[1].shape))
    return _flat(((entries,), args[0].dtype))


def _unique(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Result:
    tensor: Tensor = args[0]
    entries = tensor.numel()
    return _flat(((entries,), tensor.dtype), (tuple(tensor.shape), _LONG), ((entries,), _LONG))


def _unique_rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Result:
    tensor, dim = args[0], args[1]
    rows = tensor.shape[dim]
    return _flat((tuple(tensor.shape), tensor.dtype), ((rows,), _LONG), ((rows,), _LONG))


# For each operator, the largest result that it can have for arguments of the given geometry.
LARGEST: Mapping[Any, Callable[[tuple[Any, ...], dict[str, Any]], Result]] = {
    aten.nonzero.default: _nonzero,
    aten.masked_select.default: _masked_select,
    aten._unique2.default: _unique,
    aten.unique_consecutive.default: _unique,
    aten.unique_dim.default: _unique_rows,
}
