"""How a tile reads the accumulators of its indices, and how it raises them to its maxima."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..covers import Grid
from .tiles import Tile, owned_by_tiles

MEMBERSHIPS = 1 << 15
"""The number of memberships of index sets that are read at a time."""


class Accumulator(ABC):
    """The accumulators of one parameter that are stored in one tensor.

    Args:
        old: the values before this step, float32.
    """

    def __init__(self, old: Tensor) -> None:
        self.old = old
        self.new: Tensor | None = None
        """The maxima of this step: a second tensor, or `old` itself if tiles share no accumulator."""
        self.beta: float | None = None
        """Set in SM3-I if `new` is `old`: maxima are then added to it at once, or averaged if beta is not 0."""
        self.exchanged = False
        """Whether other ranks hold other parts of the same sets."""

    @abstractmethod
    def read(self, tile: Tile, like: Tensor) -> Tensor:
        """Return, for each index of a tile, the smallest old value among the index's sets.

        Args:
            tile: the part of the parameter.
            like: a tensor of the tile's shape.

        Returns:
            A float32 tensor that can be broadcast to the shape of `like`.
        """

    @abstractmethod
    def fold(self, tile: Tile, nu: Tensor) -> None:
        """Raise the new values to the maxima of `nu` over the part of each set that lies in the tile.

        Args:
            tile: the part of the parameter.
            nu: the second moments of the tile, float32.
        """

    def owned(self, shape: torch.Size, steps: tuple[int, ...]) -> bool:
        """Return whether each set lies in one tile only, so that the tile may overwrite the old value.

        Args:
            shape: the shape of the parameter.
            steps: the length of a tile along each dimension.
        """
        return False

    def store(self) -> None:
        """Replace the old values by the new ones."""
        if self.new is not None and self.new is not self.old:
            self.old.copy_(self.new)
        self.new = None


class GridAccumulator(Accumulator):
    """The accumulators of one grid: one number per block.

    Args:
        old: the values before this step, float32. The tensor has the shape of the grid, one entry per block.
        grid: the block length along each dimension, where 0 stands for the whole dimension.
        starts: the index at which the parameter begins along each dimension, if it is a part of a larger one.
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
        """Return the same accumulators for a parameter whose dimensions come in another order.

        Args:
            order: the dimensions in their new order.
        """
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
    """Add maxima to accumulators in place, as SM3-I does: mu <- mu + max g^2, or their average if beta is not 0.

    Args:
        old: the accumulators, float32, which are overwritten.
        maxima: the maxima of g^2, of the same shape.
        beta: the weight of the past in the average; 0 for the sum.
    """
    return old.mul_(beta or 1.0).add_(maxima * (1 - beta))


def region(tile: Tile, grid: Grid) -> Tile:
    """Return the blocks of a grid that overlap a tile.

    Args:
        tile: a part of the parameter.
        grid: the block length along each dimension, where 0 stands for the whole dimension.

    Returns:
        The range of block numbers along each dimension.
    """
    blocks = zip(tile, grid, strict=True)
    return tuple(slice(part.start // b, -(-part.stop // b)) if b else slice(0, 1) for part, b in blocks)


def spread(value: Tensor, tile: Tile, grid: Grid) -> Tensor:
    """Return, for each index of a tile, the value of its block.

    Args:
        value: one value for each block that overlaps the tile.
        tile: a part of the parameter.
        grid: the block length along each dimension, where 0 stands for the whole dimension.

    Returns:
        A tensor that can be broadcast to the shape of the tile.
    """
    for dim, (part, block) in enumerate(zip(tile, grid, strict=True)):
        if block > 1 and value.shape[dim] > 1:
            numbers = torch.arange(part.start, part.stop, device=value.device) // block - part.start // block
            value = value.index_select(dim, numbers)
    return value


def maxima(nu: Tensor, tile: Tile, grid: Grid) -> Tensor:
    """Return the maxima of a tile's values over each block that overlaps the tile.

    Args:
        nu: the values of the tile. A dimension of length 1 stands for values that are the same along it.
        tile: a part of the parameter.
        grid: the block length along each dimension, where 0 stands for the whole dimension.

    Returns:
        One maximum per block.
    """
    met = [part.stop - part.start for part in region(tile, grid)]
    whole = [dim for dim, count in enumerate(met) if count == 1 and nu.shape[dim] > 1]
    value = nu.amax(whole, keepdim=True) if whole else nu
    for dim, (part, block) in enumerate(zip(tile, grid, strict=True)):
        if block > 1 and met[dim] > 1 and nu.shape[dim] > 1:
            value = block_maxima(value, dim, part, block)
    return value


def block_maxima(value: Tensor, dim: int, part: slice, block: int) -> Tensor:
    """Return the maxima over the blocks along one dimension.

    Blocks that the tile cuts are padded with zeros, which are below every other value.

    Args:
        value: the values of the tile, none negative.
        dim: the dimension along which to take maxima.
        part: the range of the parameter's indices that the tile covers along that dimension.
        block: the block length.
    """
    ends = [part.start % block, -part.stop % block]
    padded = torch.nn.functional.pad(value, [0, 0] * (value.dim() - 1 - dim) + ends)
    return torch.amax(torch.unflatten(padded, dim, (-1, block)), dim + 1)


class IndexSetAccumulator(Accumulator):
    """The accumulators of an `IndexSets` cover: one number per set. The parameter is treated as a vector.

    Args:
        old: the values before this step, float32, one per set.
        index: int64, the flat index of each membership, in ascending order.
        number: int64, the number of the set of each membership.
    """

    def __init__(self, old: Tensor, index: Tensor, number: Tensor) -> None:
        super().__init__(old)
        self.index, self.number = index, number

    def _members(self, tile: Tile) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the memberships of a tile, some at a time: the index within the tile, and the number of the set."""
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
