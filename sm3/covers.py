"""Covers: the collections of index sets over which SM3 keeps one accumulator each.

A cover of a tensor is a list of index sets whose union is every index. SM3 stores one float32 per set (Anil
et al., NeurIPS 2019, section 3): the cover alone decides how much state there is and how close SM3 is to
diagonal Adagrad.

Every cover here is a union of *grids*. A grid cuts each dimension into blocks of one length,
0 for the whole dimension, given as a tuple: for a matrix `(1, 0)` is its rows, `(0, 1)` its columns, `(1, 1)`
its single entries.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

Grid = tuple[int, ...]


class Cover(ABC):
    """What a cover is: for each tensor shape, which index sets share an accumulator."""

    @property
    @abstractmethod
    def name(self) -> str:
        """A short text that tells covers apart; checkpoints hold it and loading compares it."""

    @abstractmethod
    def state_shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the shape of each accumulator tensor for a parameter of this shape."""

    @abstractmethod
    def index_sets(self, shape: Sequence[int]) -> list[Tensor]:
        """Return each set as a 1-D int64 tensor of flat (row-major) indices: slow, for the reference."""

    def state_numel(self, shape: Sequence[int]) -> int:
        """Return how many accumulators a parameter of this shape has."""
        return sum(math.prod(accumulator) for accumulator in self.state_shapes(shape))

    def state_bytes(self, shape: Sequence[int]) -> int:
        """Return the bytes of the float32 accumulators of a parameter of this shape."""
        return 4 * self.state_numel(shape)

    def __repr__(self) -> str:
        return f"<cover {self.name}>"


class GridCover(Cover):
    """A cover that is a union of grids of blocks."""

    @abstractmethod
    def grids(self, shape: Sequence[int]) -> list[Grid]:
        """Return the block lengths of each grid, one per dimension, 0 for a whole dimension."""

    def state_shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Return one shape per grid; a grid along a single dimension is stored as a vector."""
        return [stored_shape(shape, grid) for grid in self.grids(shape)]

    def index_sets(self, shape: Sequence[int]) -> list[Tensor]:
        """Return every block of every grid as flat indices."""
        return [block for grid in self.grids(shape) for block in _blocks_of(tuple(shape), grid)]


def grid_shape(shape: Sequence[int], grid: Grid) -> tuple[int, ...]:
    """Return how many blocks a grid has along each dimension."""
    return tuple(-(-size // block) if block else 1 for size, block in zip(shape, grid, strict=True))


def stored_shape(shape: Sequence[int], grid: Grid) -> tuple[int, ...]:
    """Return the shape of a grid's accumulators: a vector where it cuts at most one dimension."""
    counts = grid_shape(shape, grid)
    return counts if sum(block > 0 for block in grid) > 1 else (math.prod(counts),)


def _blocks_of(shape: tuple[int, ...], grid: Grid) -> list[Tensor]:
    numbers = torch.zeros(shape, dtype=torch.int64)
    for dim, (count, block) in enumerate(zip(grid_shape(shape, grid), grid, strict=True)):
        along = torch.arange(shape[dim]) // (block or max(shape[dim], 1))
        numbers = numbers * count + along.view([-1 if d == dim else 1 for d in range(len(shape))])
    flat = numbers.flatten()
    return [torch.nonzero(flat == number).flatten() for number in torch.unique(flat)]


@cache
def slice_grids(rank: int, dims: tuple[int, ...]) -> list[Grid]:
    """Return the grids that each cut one of the dimensions into single entries."""
    return [tuple(int(d == dim) for d in range(rank)) for dim in dims]


@dataclass(frozen=True, repr=False)
class Slices(GridCover):
    """The default: every codimension-1 slice, for a matrix its rows and columns.

    State: the sum of the dimensions.

    Tensors of rank 0 and 1 get the singleton cover, as in the authors' code (google-research/sm3, `sm3.py`).

    Args:
        dims: the dimensions along which to slice; None for all of them. `Slices((0,))` keeps the rows only.
    """

    dims: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """`slices`, `rows`, or `slices(0,2)`."""
        if self.dims is None:
            return "slices"
        return "rows" if self.dims == (0,) else f"slices({','.join(map(str, self.dims))})"

    def grids(self, shape: Sequence[int]) -> list[Grid]:
        """Return, for each chosen dimension, the grid of its slices.

        Raises:
            ValueError: a chosen dimension is not one of the tensor's.
        """
        if len(shape) <= 1:
            return [(1,) * len(shape)]
        dims = range(len(shape)) if self.dims is None else self.dims
        if not all(0 <= dim < len(shape) for dim in dims):
            raise ValueError(f"cover {self.name} names a dimension that shape {tuple(shape)} lacks")
        return slice_grids(len(shape), tuple(dims))


@dataclass(frozen=True, repr=False)
class Singleton(GridCover):
    """One set per entry: exactly diagonal Adagrad. State: as many as the tensor has entries."""

    @property
    def name(self) -> str:
        """Always `singleton`."""
        return "singleton"

    def grids(self, shape: Sequence[int]) -> list[Grid]:
        """Return the one grid of single entries."""
        return [(1,) * len(shape)]


@dataclass(frozen=True, repr=False)
class Whole(GridCover):
    """One set with every entry: one adaptive step size for the tensor. State: one number."""

    @property
    def name(self) -> str:
        """Always `whole`."""
        return "whole"

    def grids(self, shape: Sequence[int]) -> list[Grid]:
        """Return the one grid of one block."""
        return [(0,) * len(shape)]


@dataclass(frozen=True, repr=False)
class Blocks(GridCover):
    """Rectangular blocks of one size: a partition, so each entry is in exactly one set.

    Args:
        lengths: the block length along each dimension; -1 is the whole dimension. For a tensor of lower rank
            the first lengths are used, for one of higher rank the other dimensions are taken whole.
    """

    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.lengths or any(length == 0 or length < -1 for length in self.lengths):
            raise ValueError(f"block lengths must be positive, or -1 for a whole one, not {self.lengths}")

    @property
    def name(self) -> str:
        """As in `blocks(64,64)`."""
        return f"blocks({','.join(map(str, self.lengths))})"

    def grids(self, shape: Sequence[int]) -> list[Grid]:
        """Return the one grid."""
        lengths = (*self.lengths, *[-1] * len(shape))[: len(shape)]
        return [tuple(max(length, 0) for length in lengths)]


@dataclass(frozen=True, repr=False)
class Union(GridCover):
    """Several grid covers at once: overlapping sets, of which the smallest accumulator counts.

    Args:
        covers: for example `(Slices(), Blocks((64, 64)))`.
    """

    covers: tuple[GridCover, ...]

    def __post_init__(self) -> None:
        if not self.covers or not all(isinstance(cover, GridCover) for cover in self.covers):
            raise ValueError("a union takes one or more of Slices, Singleton, Whole and Blocks")

    @property
    def name(self) -> str:
        """As in `slices+blocks(64,64)`."""
        return "+".join(cover.name for cover in self.covers)

    def grids(self, shape: Sequence[int]) -> list[Grid]:
        """Return the grids of all of them."""
        return [grid for cover in self.covers for grid in cover.grids(shape)]


NAMED: dict[str, GridCover] = {
    "slices": Slices(),
    "rows": Slices((0,)),
    "singleton": Singleton(),
    "whole": Whole(),
}
