"""Sparse gradients (COO, hybrid or not): a step that reads and writes only the entries that are present.

Every accumulator equals the maximum of nu over its set, so an absent entry, whose g is 0, changes none: at beta = 0
this equals the chunked step with the densified gradient bit for bit, in both variants.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial, reduce

import torch
from torch import Tensor

from .accumulators import GridAccumulator
from .chunked import descend, in_two_passes, sum_and_descend
from .task import Scratch, Task
from .tiles import TILE, Tile


def step(task: Task, scratch: Scratch) -> None:
    """Update the entries of a parameter that a sparse gradient holds; duplicates are added up first.

    As in the authors' code there is no momentum on sparse updates. Time and memory are those of the values
    that are present and of their accumulators; the parameter is not read elsewhere and no dense gradient is
    made.

    Raises:
        ValueError: beta, weight decay or a cover by index sets, which would touch absent entries.
    """
    _check(task)
    grad = task.grad.coalesce()
    indices, values = grad.indices(), grad.values()
    touched = [_Touched(a, indices) for a in task.accumulators if isinstance(a, GridAccumulator)]
    if in_two_passes(task):
        for chunk in _chunks(values):
            square = values[chunk].float().square()
            for accumulator in touched:
                accumulator.fold(chunk, square)
        for accumulator in touched:
            accumulator.add_maxima()
    for chunk in _chunks(values):
        gradient = values[chunk].float()
        nu = _least(touched, chunk, gradient)
        place = tuple(indices[:, chunk])
        rows = task.param[place]
        part = Task(rows, gradient, [], None, task.options)
        if in_two_passes(task):
            descend(part, (), gradient, nu, scratch)
        else:
            sum_and_descend(part, (), gradient, nu, partial(_fold_max, touched, chunk), scratch)
        task.param.index_put_(place, rows)
    for accumulator in touched:
        accumulator.store()


def _check(task: Task) -> None:
    if task.options.beta:
        raise ValueError("beta needs dense gradients, since it decays absent entries too: pass sparse=False")
    if task.options.weight_decay:
        raise ValueError("weight_decay needs dense gradients: give this parameter a group with weight_decay=0")
    if not all(isinstance(accumulator, GridAccumulator) for accumulator in task.accumulators):
        raise ValueError("a cover by index sets needs dense gradients: use a grid cover, or pass sparse=False")


def _chunks(values: Tensor) -> Iterator[slice]:
    count = max(1, TILE // max(1, values[:1].numel()))
    for start in range(0, values.shape[0] if values.numel() else 0, count):
        yield slice(start, start + count)


def _least(touched: list[_Touched], chunk: slice, gradient: Tensor) -> Tensor:
    least = reduce(torch.minimum, [accumulator.read(chunk, gradient) for accumulator in touched])
    return least.expand_as(gradient).clone(memory_format=torch.contiguous_format)


def _fold_max(touched: list[_Touched], chunk: slice, nu: Tensor) -> None:
    for accumulator in touched:
        accumulator.fold(chunk, nu)


class _Touched:
    """The accumulators of one grid that the present entries belong to, gathered once.

    Args:
        accumulator: all of them.
        indices: int64, (sparse dimensions, entries), distinct.
    """

    def __init__(self, accumulator: GridAccumulator, indices: Tensor) -> None:
        counts, sparse = accumulator.old.shape, indices.shape[0]
        number = torch.zeros_like(indices[0])
        for dim, block in enumerate(accumulator.grid[:sparse]):
            number = number * counts[dim] + (indices[dim] // block if block else 0)
        self._all = accumulator.old.view(-1, *counts[sparse:])
        self._numbers, self._which = torch.unique(number, return_inverse=True)
        self._old = self._all[self._numbers]
        self._new = torch.zeros_like(self._old)
        self._grid = (1, *accumulator.grid[sparse:])

    def read(self, chunk: slice, like: Tensor) -> Tensor:
        """Return the old value of each entry of a chunk, broadcastable to `like`."""
        return GridAccumulator(self._old[self._which[chunk]], self._grid).read(_all_of(like), like)

    def fold(self, chunk: slice, nu: Tensor) -> None:
        """Raise the new values to the maxima of `nu` over a chunk."""
        which = self._which[chunk]
        maxima = GridAccumulator(nu.new_zeros(len(which), *self._old.shape[1:]), self._grid)
        maxima.new = maxima.old
        maxima.fold(_all_of(nu), nu)
        which = which.view(-1, *[1] * (maxima.old.dim() - 1)).expand_as(maxima.old)
        self._new.scatter_reduce_(0, which, maxima.old, "amax")

    def add_maxima(self) -> None:
        """SM3-I: mu(r) <- mu(r) + max g^2; from here on the sums are the old values."""
        self._old.add_(self._new)
        self._new.zero_()

    def store(self) -> None:
        """Write back the touched accumulators."""
        self._all[self._numbers] = torch.maximum(self._old, self._new)


def _all_of(values: Tensor) -> Tile:
    return tuple(slice(0, size) for size in values.shape)
