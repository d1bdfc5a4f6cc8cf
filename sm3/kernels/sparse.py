"""Sparse gradients (COO, hybrid or not): a step that reads and writes only the entries that are present.

Every accumulator equals the maximum of nu over its set, so an absent entry, whose g is 0, changes none: at beta = 0
this equals the chunked step with the densified gradient bit for bit, in both variants.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce

import torch
from torch import Tensor

from ..covers import Grid
from .accumulators import GridAccumulator, maxima, region, spread
from .chunked import descend, in_two_passes, sum_and_descend
from .entries import Entries, groups
from .target import float32
from .task import Scratch, Task
from .tiles import Tile, owned_by_tiles, tile_steps, tiles

CHUNK = 1 << 16
"""Numbers that are updated at a time; up to ten copies of them are needed."""


def step(task: Task, scratch: Scratch) -> None:
    """Update the entries of a parameter that a sparse gradient holds; duplicates are added up first.

    As in the authors' code there is no momentum on sparse updates. Time is that of the values that are present, plus
    that of reading all n indices some n / 16384 times. Temporaries stay below 4 MiB, except that with several sparse
    dimensions there is a second copy of the accumulators along all of these but the first.

    Raises:
        ValueError: beta, weight decay or a cover by index sets, which would touch absent entries.
    """
    _check(task)
    sparse = _Sparse(task)
    if in_two_passes(task):
        for part in sparse.parts():
            part.fold_squares(scratch)
        sparse.add_maxima()
    for part in sparse.parts():
        part.update(scratch)
    if not in_two_passes(task):
        sparse.raise_to_maxima()


def _check(task: Task) -> None:
    if task.options.beta:
        raise ValueError("beta needs dense gradients, since it decays absent entries too: pass sparse=False")
    if task.options.weight_decay:
        raise ValueError("weight_decay needs dense gradients: give this parameter a group with weight_decay=0")
    if not all(isinstance(accumulator, GridAccumulator) for accumulator in task.accumulators):
        raise ValueError("a cover by index sets needs dense gradients: use a grid cover, or pass sparse=False")


class _Sparse:
    """One parameter's sparse step: its accumulators by keys, and the parts into which its entries are cut."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.indices, self.values = task.grad._indices(), task.grad._values()
        count = task.grad.sparse_dim()
        self.shape, self.rest = task.param.shape[:count], task.param.shape[count:]
        grids = [a.grid for a in task.accumulators if isinstance(a, GridAccumulator)]
        runs = [run for grid in grids if (run := _run(self.shape, grid[:count])) <= CHUNK]
        self.run = math.lcm(*runs) if math.lcm(*runs) <= CHUNK else 1
        self.steps = tile_steps(self.rest, [grid[count:] for grid in grids], limit=CHUNK // self.run)
        self.keyed = [_Keyed(a, self) for a in task.accumulators if isinstance(a, GridAccumulator)]

    def parts(self) -> Iterator[_Part]:
        """Yield every part: some keys, and a tile of the dense dimensions."""
        if 0 in self.task.param.shape:
            return
        most = max(self.run, CHUNK // max(1, math.prod(self.steps)))
        for entries in groups(self.indices, self.shape, most, self.run):
            for tile in tiles(self.rest, self.steps):
                yield _Part(self, entries, tile)

    def add_maxima(self) -> None:
        """SM3-I: mu(r) <- mu(r) + max g^2, for sets that several parts share."""
        for keyed in self.keyed:
            if keyed.maxima is not None:
                keyed.old.add_(keyed.maxima)

    def raise_to_maxima(self) -> None:
        """SM3-II: mu(r) <- max nu, for sets that several parts share."""
        for keyed in self.keyed:
            if keyed.maxima is not None:
                torch.maximum(keyed.old, keyed.maxima, out=keyed.old)


def _run(shape: torch.Size, grid: Grid) -> int:
    """Return how many successive keys the sets of a grid take up; infinity where they are not successive."""
    cut = [dim for dim, block in enumerate(grid) if block]
    last = cut[-1] if cut else 0
    if not cut or any(grid[dim] != 1 for dim in range(last)):
        return 1 << 62
    return grid[last] * math.prod(shape[last + 1 :])


def _every_key(tile: Tile) -> Tile:
    return (slice(None), *tile)


class _Keyed:
    """The accumulators of one grid, by keys and dense dimensions.

    `maxima` gathers those of sets that several parts share; other sets are written at once.
    """

    def __init__(self, accumulator: GridAccumulator, sparse: _Sparse) -> None:
        count = len(sparse.shape)
        self._sparse, self._counts = accumulator.grid[:count], accumulator.old.shape[:count]
        self._shape, self._dense = sparse.shape, accumulator.grid[count:]
        self.old = accumulator.old.view(-1, *accumulator.old.shape[count:])
        whole = sparse.run % _run(sparse.shape, self._sparse) == 0
        owned = whole and owned_by_tiles(sparse.rest, sparse.steps, self._dense)
        self.maxima = None if owned else torch.zeros_like(self.old)

    def numbers(self, keys: Tensor) -> Tensor:
        """Return, for each key, where its set lies along the first dimension of `old`."""
        number, left = torch.zeros_like(keys), math.prod(self._shape)
        for size, count, block in zip(self._shape, self._counts, self._sparse, strict=True):
            left //= size
            number = number * count + (keys // left % size // block if block else 0)
        return number

    def over(self, values: Tensor, tile: Tile) -> Tensor:
        """Return the part of values, laid out like `old`, that belongs to a tile of the dense dimensions."""
        return values[_every_key(region(tile, self._dense))]

    def read(self, numbers: Tensor, tile: Tile) -> Tensor:
        """Return the old value of each key and index of a dense tile: broadcastable to (keys, tile)."""
        value = self.over(self.old, tile).index_select(0, numbers)
        return spread(value, (slice(0, len(numbers)), *tile), (1, *self._dense))

    def fold(self, target: Tensor, numbers: Tensor, tile: Tile, nu: Tensor) -> None:
        """Raise `target`, one value for each set that a tile meets, to the maxima over its part of them."""
        found = maxima(nu, (slice(0, len(numbers)), *tile), (1, *self._dense))
        if len(self.old) == 1:
            torch.maximum(target, found.amax(0, keepdim=True), out=target)
            return
        which = numbers.view(-1, *[1] * (nu.dim() - 1)).expand_as(found)
        target.scatter_reduce_(0, which, found, "amax")


class _Part:
    """Some keys, and a tile of the dense dimensions."""

    def __init__(self, sparse: _Sparse, entries: Entries, tile: Tile) -> None:
        self._task, self._sparse, self._tile = sparse.task, sparse, tile
        self._values = entries.gradient(sparse.values[_every_key(tile)], CHUNK)
        self._keys = entries.keys
        self._numbers = [keyed.numbers(entries.keys) for keyed in sparse.keyed]

    def _place(self) -> tuple[Tensor | slice, ...]:
        """Return the indices of the keys in the parameter, and the tile."""
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
        return param[_every_key(self._tile)].index_select(0, self._keys)

    def _write(self, rows: Tensor) -> None:
        param = self._task.param
        if len(self._sparse.shape) > 1:
            param[self._place()] = rows
        else:
            param[_every_key(self._tile)].index_copy_(0, self._keys, rows)

    def _pairs(self) -> Iterator[tuple[_Keyed, Tensor]]:
        return zip(self._sparse.keyed, self._numbers, strict=True)

    def fold_squares(self, scratch: Scratch) -> None:
        """SM3-I: maxima of g^2 over sets that several parts share."""
        grad = float32(self._values, scratch, "grad")
        square = torch.mul(grad, grad, out=scratch.take("nu", grad))
        for keyed, numbers in self._pairs():
            if keyed.maxima is not None:
                keyed.fold(keyed.over(keyed.maxima, self._tile), numbers, self._tile, square)

    def update(self, scratch: Scratch) -> None:
        """Update the parameter, and the accumulators of sets that this part has all entries of."""
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
            kept = keyed.old if keyed.maxima is None else keyed.maxima
            keyed.fold(keyed.over(kept, self._tile), numbers, self._tile, nu)

    def _add_squares(self, grad: Tensor, scratch: Scratch) -> None:
        square = torch.mul(grad, grad, out=scratch.take("nu", grad))
        for keyed, numbers in self._pairs():
            if keyed.maxima is None:
                sets, which = torch.unique(numbers, return_inverse=True)
                old = keyed.over(keyed.old, self._tile)
                found = old.new_zeros(len(sets), *old.shape[1:])
                keyed.fold(found, which, self._tile, square)
                old.index_add_(0, sets, found)
