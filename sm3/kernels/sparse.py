"""A step with a sparse gradient (COO, hybrid or not), which reads and writes only the entries that it holds.

Every accumulator equals the maximum of nu over its set, so an absent entry, whose g is 0, changes no accumulator. At
beta = 0 the step therefore equals the chunked step with the dense gradient bit for bit, in both variants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import reduce

import torch
from torch import Tensor

from .accumulators import GridAccumulator
from .chunked import descend, in_two_passes, sum_and_descend
from .entries import Entries, groups
from .scratch import Scratch
from .sparse_sets import KeyedSets, every_key, run_of
from .task import Task
from .tile_target import float32
from .tiles import Tile, tile_steps, tiles

CHUNK = 1 << 16
"""The number of values that are updated at a time. Up to ten copies of them are needed."""


def step(task: Task, scratch: Scratch) -> None:
    """Update the entries of a parameter that a sparse gradient holds. Duplicates are added up first.

    As in the authors' code, sparse updates have no momentum. The step takes time for the values that are present, and
    for reading all n indices about n / 16384 times. Temporaries stay below 4 MiB, with one exception: the maxima of
    sets whose entries are spread over several parts of the work are kept until its end. They take up to 32 bytes for
    each entry that is present and each grid of the cover.

    Args:
        task: a task whose gradient is sparse.
        scratch: the source of temporaries.

    Raises:
        ValueError: the group has beta, weight decay or a cover by index sets, which would change absent entries.
    """
    _check(task)
    sparse = _Sparse(task)
    if in_two_passes(task):
        sparse.for_each_part(lambda part: part.fold_squares(scratch), add=True)
        sparse.for_each_part(lambda part: part.update(scratch), add=None)
    else:
        sparse.for_each_part(lambda part: part.update(scratch), add=False)


def _check(task: Task) -> None:
    if task.options.beta:
        raise ValueError("beta needs dense gradients, since it decays absent entries too: pass sparse=False")
    if task.options.weight_decay:
        raise ValueError("weight_decay needs dense gradients: give this parameter a group with weight_decay=0")
    if not all(isinstance(accumulator, GridAccumulator) for accumulator in task.accumulators):
        raise ValueError("a cover by index sets needs dense gradients: use a grid cover, or pass sparse=False")


class _Sparse:
    """One parameter's sparse step: its accumulators by keys, and the parts into which its entries are divided."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.indices, self.values = task.grad._indices(), task.grad._values()
        count = task.grad.sparse_dim()
        self.shape, self.rest = task.param.shape[:count], task.param.shape[count:]
        accumulators = [a for a in task.accumulators if isinstance(a, GridAccumulator)]
        self.limit = CHUNK // max(1, count)  # each key has one index for every sparse dimension
        runs = [run for a in accumulators if (run := run_of(self.shape, a.grid[:count])) <= self.limit]
        self.run = math.lcm(*runs) if math.lcm(*runs) <= self.limit else 1
        self.steps = tile_steps(self.rest, [a.grid[count:] for a in accumulators], limit=self.limit // self.run)
        self.keyed = [KeyedSets(a, self.indices, self.shape, self.rest, self.run, self.steps) for a in accumulators]

    def for_each_part(self, work: Callable[[_SparsePart], None], add: bool | None) -> None:
        """Run a function on each part: some keys, and a tile of the dense dimensions.

        Args:
            work: the function.
            add: what happens to the maxima that are kept until the end. If True they are added to the accumulators
                (SM3-I), if False the accumulators are raised to them (SM3-II). None means that no part leaves any.
        """
        if 0 in self.task.param.shape:
            return
        self._begin("step", tuple(slice(0, size) for size in self.rest), add)
        for tile in tiles(self.rest, self.steps):
            self._begin("tile", tile, add)
            for entries in self._groups():
                work(_SparsePart(self, entries, tile))
            self._end("tile", add)
        self._end("step", add)

    def _groups(self) -> Iterator[Entries]:
        most = max(self.run, self.limit // max(1, math.prod(self.steps)))
        return groups(self.indices, self.shape, most, self.run)

    def _begin(self, scope: str, tile: Tile, add: bool | None) -> None:
        for keyed in self.keyed:
            if keyed.scope == scope and add is not None:
                keyed.begin(tile)

    def _end(self, scope: str, add: bool | None) -> None:
        for keyed in self.keyed:
            if keyed.scope == scope and add is not None:
                keyed.end(add)


class _SparsePart:
    """Some keys, and a tile of the dense dimensions."""

    def __init__(self, sparse: _Sparse, entries: Entries, tile: Tile) -> None:
        self._task, self._sparse, self._tile = sparse.task, sparse, tile
        self._values = entries.gradient(sparse.values[every_key(tile)], sparse.limit)
        self._keys = entries.keys
        self._numbers = [keyed.numbers(entries.keys) for keyed in sparse.keyed]

    def _place(self) -> tuple[Tensor | slice, ...]:
        """Return the indices of the keys in the parameter, followed by the tile."""
        place: list[Tensor] = []
        left = self._keys
        for size in reversed(self._sparse.shape):
            place.insert(0, left % size)
            left = left // size
        return (*place, *self._tile)

    def _rows(self) -> Tensor:
        param = self._task.param
        if len(self._sparse.shape) > 1:
            return param[self._place()]
        return param[every_key(self._tile)].index_select(0, self._keys)

    def _write(self, rows: Tensor) -> None:
        param = self._task.param
        if len(self._sparse.shape) > 1:
            param[self._place()] = rows
        else:
            param[every_key(self._tile)].index_copy_(0, self._keys, rows)

    def _pairs(self) -> Iterator[tuple[KeyedSets, Tensor]]:
        return zip(self._sparse.keyed, self._numbers, strict=True)

    def fold_squares(self, scratch: Scratch) -> None:
        """Take the maxima of g^2 over the sets that several parts share, for SM3-I."""
        grad = float32(self._values, scratch, "grad")
        square = torch.mul(grad, grad, out=scratch.take("nu", grad))
        for keyed, numbers in self._pairs():
            if keyed.scope != "part":
                keyed.fold(numbers, self._tile, square)

    def update(self, scratch: Scratch) -> None:
        """Update the parameter, and the accumulators of the sets whose entries are all in this part."""
        grad = float32(self._values, scratch, "grad")
        if in_two_passes(self._task):
            self._add_squares(grad, scratch)
        least = reduce(torch.minimum, [keyed.read(numbers, self._tile) for keyed, numbers in self._pairs()])
        nu = scratch.take("nu", grad).copy_(least)
        rows = self._rows()
        part = Task(rows, grad, [], None, self._task.options)
        if in_two_passes(self._task):
            descend(part, (), grad, nu, scratch)
        else:
            sum_and_descend(part, (), grad, nu, self._fold, scratch)
        self._write(rows)

    def _fold(self, nu: Tensor) -> None:
        for keyed, numbers in self._pairs():
            keyed.fold(numbers, self._tile, nu)

    def _add_squares(self, grad: Tensor, scratch: Scratch) -> None:
        square = torch.mul(grad, grad, out=scratch.take("nu", grad))
        for keyed, numbers in self._pairs():
            if keyed.scope == "part":
                keyed.add_maxima(numbers, self._tile, square)
