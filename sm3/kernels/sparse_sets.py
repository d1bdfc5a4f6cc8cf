"""The accumulators of one grid, addressed by the keys of a sparse gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..covers import Grid
from .accumulators import GridAccumulator, maxima, region, spread
from .entries import keys_of
from .tiles import Tile, owned_by_tiles

SMALL = 1 << 15
"""The largest number of maxima (128 KiB) for which the table may have a row for every set, present or not."""


def run_of(shape: Sequence[int], grid: Grid) -> int:
    """Return the number of successive keys that a set of a grid takes up, or 2**62 if they are not successive.

    Args:
        shape: the sparse dimensions of the parameter.
        grid: the block length along each sparse dimension, where 0 stands for the whole dimension.
    """
    cut = [dim for dim, block in enumerate(grid) if block]
    last = cut[-1] if cut else 0
    if not cut or any(grid[dim] != 1 for dim in range(last)):
        return 1 << 62
    return grid[last] * math.prod(shape[last + 1 :])


def every_key(tile: Tile) -> Tile:
    """Return the index that selects a tile of the dense dimensions for all keys.

    Args:
        tile: a tile of the dense dimensions.
    """
    return (slice(None), *tile)


class KeyedSets:
    """The accumulators of one grid, by keys and dense dimensions.

    The attribute `scope` says when all entries of a set have been seen: at the end of a "part" (some keys and a tile of
    the dense dimensions), at the end of a "tile" for all keys, or at the end of the "step". A part writes its
    accumulators at once. In the other cases the maxima are kept in a table until then. The table has a row for every
    set if the sets are few or most of them are present, otherwise only for the sets that are present.

    Args:
        accumulator: the accumulators and their grid.
        indices: the gradient's indices, int64, of shape (sparse dimensions, entries).
        shape: the sparse dimensions of the parameter.
        rest: the dense dimensions of the parameter.
        run: the length of a run. Keys with the same quotient by this number are always in one part.
        steps: the length of a tile along each dense dimension.
    """

    def __init__(
        self,
        accumulator: GridAccumulator,
        indices: Tensor,
        shape: torch.Size,
        rest: torch.Size,
        run: int,
        steps: tuple[int, ...],
    ) -> None:
        count = len(shape)
        self._sparse, self._counts = accumulator.grid[:count], accumulator.old.shape[:count]
        self._indices, self._shape, self._dense = indices, shape, accumulator.grid[count:]
        self.old = accumulator.old.view(-1, *accumulator.old.shape[count:])
        in_tile = owned_by_tiles(rest, steps, self._dense)
        self.scope = ("part" if run % run_of(shape, self._sparse) == 0 else "tile") if in_tile else "step"
        self._present: Tensor | None = None
        self._table, self._region = self.old, (slice(0, 0),) * len(rest)

    def begin(self, tile: Tile) -> None:
        """Make a table for the maxima over a tile and all keys.

        Args:
            tile: a tile of the dense dimensions.
        """
        self._region = region(tile, self._dense)
        width = math.prod(part.stop - part.start for part in self._region)
        if len(self.old) * width > SMALL and len(self.old) > 4 * self._indices.shape[1] and self._present is None:
            self._present = torch.unique(
                torch.cat([self.numbers(keys) for keys in keys_of(self._indices, self._shape)])
            )
        sets = len(self.old) if self._present is None else len(self._present)
        self._table = self.old.new_zeros(sets, *[part.stop - part.start for part in self._region])

    def end(self, add: bool) -> None:
        """Apply the maxima of the table to the accumulators.

        Args:
            add: True to add the maxima to the accumulators (SM3-I), False to raise the accumulators to them (SM3-II).
        """
        old, table = self.old[every_key(self._region)], self._table
        if self._present is None:
            old.add_(table) if add else torch.maximum(old, table, out=old)
        elif add:
            old.index_add_(0, self._present, table)
        else:
            old.scatter_reduce_(0, _along(self._present, table), table, "amax")
        self._table = self.old

    def numbers(self, keys: Tensor) -> Tensor:
        """Return the position of each key's set along the first dimension of `old`.

        Args:
            keys: int64.
        """
        number, left = torch.zeros_like(keys), math.prod(self._shape)
        for size, count, block in zip(self._shape, self._counts, self._sparse, strict=True):
            left //= size
            number = number * count + (keys // left % size // block if block else 0)
        return number

    def read(self, numbers: Tensor, tile: Tile) -> Tensor:
        """Return the old value for each key and each index of a dense tile.

        Args:
            numbers: the result of `numbers` for the keys.
            tile: a tile of the dense dimensions.

        Returns:
            A float32 tensor that can be broadcast to (keys, tile).
        """
        value = self.old[every_key(region(tile, self._dense))].index_select(0, numbers)
        return spread(value, (slice(0, len(numbers)), *tile), (1, *self._dense))

    def fold(self, numbers: Tensor, tile: Tile, nu: Tensor) -> None:
        """Raise the table to the maxima over a part, or the accumulators if the part has all entries of its sets.

        Args:
            numbers: the result of `numbers` for the keys.
            tile: a tile of the dense dimensions.
            nu: the second moments, float32, of shape (keys, tile).
        """
        if self.scope == "part":
            return _raise(self.old[every_key(region(tile, self._dense))], numbers, self._maxima(numbers, tile, nu))
        pairs = zip(region(tile, self._dense), self._region, strict=True)
        place = tuple(slice(part.start - whole.start, part.stop - whole.start) for part, whole in pairs)
        which = numbers if self._present is None else torch.searchsorted(self._present, numbers)
        return _raise(self._table[every_key(place)], which, self._maxima(numbers, tile, nu))

    def add_maxima(self, numbers: Tensor, tile: Tile, square: Tensor) -> None:
        """Compute mu(r) <- mu(r) + max g^2 for SM3-I, in a part that has all entries of its sets.

        Args:
            numbers: the result of `numbers` for the keys.
            tile: a tile of the dense dimensions.
            square: the squares g^2, float32, of shape (keys, tile).
        """
        sets, which = torch.unique(numbers, return_inverse=True)
        old = self.old[every_key(region(tile, self._dense))]
        found = old.new_zeros(len(sets), *old.shape[1:])
        _raise(found, which, self._maxima(numbers, tile, square))
        old.index_add_(0, sets, found)

    def _maxima(self, numbers: Tensor, tile: Tile, nu: Tensor) -> Tensor:
        return maxima(nu, (slice(0, len(numbers)), *tile), (1, *self._dense))


def _along(numbers: Tensor, values: Tensor) -> Tensor:
    return numbers.view(-1, *[1] * (values.dim() - 1)).expand_as(values)


def _raise(target: Tensor, which: Tensor, found: Tensor) -> None:
    if len(target) == 1:
        torch.maximum(target, found.amax(0, keepdim=True), out=target)
    else:
        target.scatter_reduce_(0, _along(which, found), found, "amax")
