"""Operators whose output is as large as the data make it: predicted is the largest that it can be, and noted so."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memprof.prediction.fake.known_values import is_fake, name_of
from memprof.prediction.fake.tensors import Layout, Result, tensors_in

if TYPE_CHECKING:
    from memprof.prediction.fake.dispatch import FakeOperators

aten = torch.ops.aten
_LONG = torch.int64


def largest_plans(mode: FakeOperators) -> dict[Any, Any]:
    """Return how to run these operators: for real where every value is known."""
    return {func: _Largest(mode, result).run for func, result in _RESULTS.items()}


class _Largest:
    def __init__(self, mode: FakeOperators, result: Any) -> None:
        self._mode = mode
        self._result = result

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = tensors_in(args)
        if not any(map(is_fake, tensors)):
            return self._mode.run_known(func, args, kwargs, tensors)
        self._mode.reads.guess_here(
            self._mode.place()[0], f"runs {name_of(func)}, whose output depends on the data: its largest is counted"
        )
        return self._mode.run_as(func, args, kwargs, self._result(args, kwargs))


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


_RESULTS: dict[Any, Any] = {
    aten.nonzero.default: _nonzero,
    aten.masked_select.default: _masked_select,
    aten._unique2.default: _unique,
    aten.unique_consecutive.default: _unique,
    aten.unique_dim.default: _unique_rows,
}
