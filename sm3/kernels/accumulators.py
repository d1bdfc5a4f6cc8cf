"""How a tile reads the accumulators of its indices and raises them to its maxima."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..covers import Grid
from .tiles import Tile, owned_by_tiles

MEMBERSHIPS = 1 << 15
"""Memberships of index sets that are read at a time."""


class Accumulator(ABC):
    """The accumulators of one parameter that are stored in one tensor.

    Args:
        old: the values before this step, float32.
    """

    def __init__(self, old: Tensor) -> None:
        self.old = old
        self.new: Tensor | None = None
        """Where this step's maxima gather: a second tensor, or `old` where tiles share no accumulator."""
        self.beta: float | None = None
        """In SM3-I, where `new` is `old`: maxima are added to it at once, or averaged in where beta is not 0."""
        self.exchanged = False
        """Whether other ranks hold a part of its sets."""

    @abstractmethod
    def read(self, tile: Tile, like: Tensor) -> Tensor:
        """Return, for each index of a tile, the least old value of its sets: broadcastable to `like`."""

    @abstractmethod
    def fold(self, tile: Tile, nu: Tensor) -> None:
        """Raise the new values to the maxima of `nu` over the part of each set that lies in the tile."""

    def owned(self, shape: torch.Size, steps: tuple[int, ...]) -> bool:
        """Say whether each set lies in one tile only, which may then overwrite the old value."""
        return False

    def store(self) -> None:
        """Make the new values the old ones."""
        if self.new is not None and self.new is not self.old:
            self.old.copy_(self.new)
        self.new = None


class GridAccumulator(Accumulator):
    """One number per block of a grid.

    Args:
        old: the values before this step, float32, with as many blocks along each dimension as the grid has.
        grid: the block length along each dimension, 0 for the whole of it.
        starts: where the parameter begins along each dimension, if it is a part of a larger one.
    """

    def __init__(self, old: Tensor, grid: Grid, starts: Sequence[int] = ()) -> None:
        super().__init__(old)
        self.grid = grid
        self.starts = tuple(starts) or (0,) * len(grid)

    def owned(self, shape: torch.Size, steps: tuple[int, ...]) -> bool:
        """See `Accumulator.owned`."""
        mine = not (self.exchanged and any(block > 1 for block in self.grid))
        return mine and 0 not in shape and owned_by_tiles(shape, steps, self.grid)

    def _in_whole(self, tile: Tile) -> Tile:
        return tuple(slice(t.start + at, t.stop + at) for t, at in zip(tile, self.starts, strict=True))

    def permuted(self, order: Sequence[int]) -> GridAccumulator:
        """Return the same accumulators for a parameter whose dimensions come in another order."""
        same = GridAccumulator(
            self.old.permute(*order), tuple(self.grid[dim] for dim in order), [self.starts[dim] for dim in order]
        )
        same.exchanged = self.exchanged
        return same

    def read(self, tile: Tile, like: Tensor) -> Tensor:
        """See `Accumulator.read`."""
        tile = self._in_whole(tile)
        return spread(self.old[region(tile, self.grid)], tile, self.grid)

    def fold(self, tile: Tile, nu: Tensor) -> None:
        """See `Accumulator.fold`."""
        assert self.new is not None
        tile = self._in_whole(tile)
        target = self.new[region(tile, self.grid)]
        value = maxima(nu, tile, self.grid)
        if self.new is self.old:
            target.copy_(value if self.beta is None else added(target, value, self.beta))
        else:
            torch.maximum(target, value, out=target)


def added(old: Tensor, maxima: Tensor, beta: float) -> Tensor:
    """SM3-I, in place: mu <- mu + max g^2, or their average where beta is not 0."""
    return old.mul_(beta or 1.0).add_(maxima * (1 - beta))


def region(tile: Tile, grid: Grid) -> Tile:
    """Return which blocks of a grid a tile meets."""
    blocks = zip(tile, grid, strict=True)
    return tuple(slice(part.start // b, -(-part.stop // b)) if b else slice(0, 1) for part, b in blocks)


def spread(value: Tensor, tile: Tile, grid: Grid) -> Tensor:
    """Give each index of a tile the value of its block: broadcastable to the tile."""
    for dim, (part, block) in enumerate(zip(tile, grid, strict=True)):
        if block > 1 and value.shape[dim] > 1:
            numbers = torch.arange(part.start, part.stop, device=value.device) // block - part.start // block
            value = value.index_select(dim, numbers)
    return value


def maxima(nu: Tensor, tile: Tile, grid: Grid) -> Tensor:
    """Return the maxima of a tile's values over each block that it meets; dimensions of length 1 are as they are."""
    met = [part.stop - part.start for part in region(tile, grid)]
    whole = [dim for dim, count in enumerate(met) if count == 1 and nu.shape[dim] > 1]
    value = nu.amax(whole, keepdim=True) if whole else nu
    for dim, (part, block) in enumerate(zip(tile, grid, strict=True)):
        if block > 1 and met[dim] > 1 and nu.shape[dim] > 1:
            value = block_maxima(value, dim, part, block)
    return value


def block_maxima(value: Tensor, dim: int, part: slice, block: int) -> Tensor:
    """Return the maxima over blocks along one dimension; zeros, the least there is, fill up cut blocks."""
    ends = [part.start % block, -part.stop % block]
    padded = torch.nn.functional.pad(value, [0, 0] * (value.dim() - 1 - dim) + ends)
    return torch.amax(torch.unflatten(padded, dim, (-1, block)), dim + 1)


class IndexSetAccumulator(Accumulator):
    """One number per set of an `IndexSets` cover; the parameter is seen as a vector.

    Args:
        old: the values before this step, float32, one per set.
        index: int64, for each membership its flat index, in ascending order.
        number: int64, for each membership the number of its set.
    """

    def __init__(self, old: Tensor, index: Tensor, number: Tensor) -> None:
        super().__init__(old)
        self.index, self.number = index, number

    def _members(self, tile: Tile) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the memberships of a tile, some at a time: index, from the tile's start, and number of the set."""
        ends = torch.tensor([tile[0].start, tile[0].stop], device=self.index.device)
        first, last = torch.searchsorted(self.index, ends).tolist()
        for start in range(first, last, MEMBERSHIPS):
            part = slice(start, min(start + MEMBERSHIPS, last))
            yield self.index[part] - tile[0].start, self.number[part]

    def read(self, tile: Tile, like: Tensor) -> Tensor:
        """See `Accumulator.read`."""
        least = torch.full_like(like, torch.inf)
        for index, number in self._members(tile):
            least.scatter_reduce_(0, index, self.old[number], "amin")
        return least

    def fold(self, tile: Tile, nu: Tensor) -> None:
        """See `Accumulator.fold`."""
        assert self.new is not None
        for index, number in self._members(tile):
            self.new.scatter_reduce_(0, number, nu[index], "amax")
