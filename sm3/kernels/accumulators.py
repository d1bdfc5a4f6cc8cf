"""How a tile reads the accumulators of its indices and raises them to its maxima."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..covers import Grid
from .tiles import Tile, owned_by_tiles


class Accumulator(ABC):
    """The accumulators of one parameter that are stored in one tensor.

    Args:
        old: the values before this step, float32.
    """

    def __init__(self, old: Tensor) -> None:
        self.old = old
        self.new: Tensor | None = None
        """Where this step's maxima gather: a second tensor, or `old` where tiles share no accumulator."""

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
    """

    def __init__(self, old: Tensor, grid: Grid) -> None:
        super().__init__(old)
        self.grid = grid

    def owned(self, shape: torch.Size, steps: tuple[int, ...]) -> bool:
        """See `Accumulator.owned`."""
        return 0 not in shape and owned_by_tiles(shape, steps, self.grid)

    def _region(self, tile: Tile) -> Tile:
        blocks = zip(tile, self.grid, strict=True)
        return tuple(slice(part.start // b, -(-part.stop // b)) if b else slice(0, 1) for part, b in blocks)

    def _partial(self) -> list[int]:
        """Return the dimensions cut in blocks longer than one entry and shorter than the dimension."""
        return [dim for dim, block in enumerate(self.grid) if block > 1 and self.old.shape[dim] > 1]

    def read(self, tile: Tile, like: Tensor) -> Tensor:
        """See `Accumulator.read`."""
        value = self.old[self._region(tile)]
        for dim in self._partial():
            part, block = tile[dim], self.grid[dim]
            numbers = torch.arange(part.start, part.stop, device=value.device) // block - part.start // block
            value = value.index_select(dim, numbers)
        return value

    def fold(self, tile: Tile, nu: Tensor) -> None:
        """See `Accumulator.fold`."""
        whole = [dim for dim, count in enumerate(self.old.shape) if count == 1 and nu.shape[dim] > 1]
        value = nu.amax(whole, keepdim=True) if whole else nu
        for dim in self._partial():
            value = block_maxima(value, dim, tile[dim], self.grid[dim])
        assert self.new is not None
        target = self.new[self._region(tile)]
        if self.new is self.old:
            target.copy_(value)
        else:
            torch.maximum(target, value, out=target)


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

    def _members(self, tile: Tile) -> tuple[Tensor, Tensor]:
        ends = torch.tensor([tile[0].start, tile[0].stop], device=self.index.device)
        first, last = torch.searchsorted(self.index, ends).tolist()
        return self.index[first:last] - tile[0].start, self.number[first:last]

    def read(self, tile: Tile, like: Tensor) -> Tensor:
        """See `Accumulator.read`."""
        index, number = self._members(tile)
        least = torch.full_like(like, torch.inf)
        return least.scatter_reduce_(0, index, self.old[number], "amin")

    def fold(self, tile: Tile, nu: Tensor) -> None:
        """See `Accumulator.fold`."""
        assert self.new is not None
        index, number = self._members(tile)
        self.new.scatter_reduce_(0, number, nu[index], "amax")
