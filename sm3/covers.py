"""Covers: the collections of index sets for which SM3 keeps one accumulator each.

A cover of a tensor is a list of index sets whose union contains every index. SM3 stores one float32 number per set
(Anil et al., NeurIPS 2019, section 3). The cover alone decides how much state SM3 keeps and how close SM3 comes to
diagonal Adagrad.

Every cover in this module is a union of *grids*. A grid cuts each dimension into blocks of equal length. It is written
as a tuple of block lengths, where 0 stands for the whole dimension. For a matrix, `(1, 0)` is the grid of its rows,
`(0, 1)` the grid of its columns and `(1, 1)` the grid of its single entries.
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
    """The interface of a cover: it says, for each tensor shape, which index sets share an accumulator."""

    @property
    @abstractmethod
    def name(self) -> str:
        """A short text that identifies the cover. Checkpoints store it, and loading compares it."""

    @abstractmethod
    def state_shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the shape of each accumulator tensor for a parameter.

        Args:
            shape: the shape of the parameter.
        """

    @abstractmethod
    def index_sets(self, shape: Sequence[int]) -> list[Tensor]:
        """Return each index set as a tensor. This is slow and serves the reference implementation.

        Args:
            shape: the shape of the parameter.

        Returns:
            One 1-D int64 tensor of flat (row-major) indices per set.
        """

    def state_numel(self, shape: Sequence[int]) -> int:
        """Return the number of accumulators of a parameter.

        Args:
            shape: the shape of the parameter.
        """
        return sum(math.prod(accumulator) for accumulator in self.state_shapes(shape))

    def state_bytes(self, shape: Sequence[int]) -> int:
        """Return the size of a parameter's float32 accumulators in bytes.

        Args:
            shape: the shape of the parameter.
        """
        return 4 * self.state_numel(shape)

    def __repr__(self) -> str:
        return f"<cover {self.name}>"


class GridCover(Cover):
    """A cover that is a union of grids of blocks."""

    @abstractmethod
    def grids(self, shape: Sequence[int]) -> list[Grid]:
        """Return the grids of the cover.

        Args:
            shape: the shape of the parameter.

        Returns:
            For each grid a tuple with one block length per dimension, where 0 stands for the whole dimension.
        """

    def state_shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Return one shape per grid. A grid that cuts a single dimension is stored as a vector.

        Args:
            shape: the shape of the parameter.
        """
        return [stored_shape(shape, grid) for grid in self.grids(shape)]

    def index_sets(self, shape: Sequence[int]) -> list[Tensor]:
        """Return every block of every grid.

        Args:
            shape: the shape of the parameter.

        Returns:
            One 1-D int64 tensor of flat (row-major) indices per block.
        """
        return [block for grid in self.grids(shape) for block in _blocks_of(tuple(shape), grid)]


def grid_shape(shape: Sequence[int], grid: Grid) -> tuple[int, ...]:
    """Return the number of blocks that a grid has along each dimension.

    Args:
        shape: the shape of the parameter.
        grid: the block length along each dimension, where 0 stands for the whole dimension.
    """
    return tuple(-(-size // block) if block else 1 for size, block in zip(shape, grid, strict=True))


def stored_shape(shape: Sequence[int], grid: Grid) -> tuple[int, ...]:
    """Return the shape in which a grid's accumulators are stored.

    Args:
        shape: the shape of the parameter.
        grid: the block length along each dimension, where 0 stands for the whole dimension.

    Returns:
        A one-dimensional shape if the grid cuts at most one dimension, otherwise the number of blocks along each.
    """
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
    """Return one grid for each of the given dimensions, which cuts that dimension into single entries.

    Args:
        rank: the number of dimensions of the parameter.
        dims: the dimensions to cut.
    """
    return [tuple(int(d == dim) for d in range(rank)) for dim in dims]


@dataclass(frozen=True, repr=False)
class Slices(GridCover):
    """The default cover: every codimension-1 slice. For a matrix these are its rows and its columns.

    The number of accumulators is the sum of the dimensions. Tensors of rank 0 and 1 get the singleton cover, as in the
    authors' code (google-research/sm3, `sm3.py`).

    Args:
        dims: the dimensions along which to slice, or None for all of them. `Slices((0,))` keeps only the rows.
    """

    dims: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """The name `slices`, `rows`, or for example `slices(0,2)`."""
        if self.dims is None:
            return "slices"
        return "rows" if self.dims == (0,) else f"slices({','.join(map(str, self.dims))})"

    def grids(self, shape: Sequence[int]) -> list[Grid]:
        """Return, for each chosen dimension, the grid of its slices.

        Args:
            shape: the shape of the parameter.

        Raises:
            ValueError: the tensor lacks one of the chosen dimensions.
        """
        if len(shape) <= 1:
            return [(1,) * len(shape)]
        dims = range(len(shape)) if self.dims is None else self.dims
        if not all(0 <= dim < len(shape) for dim in dims):
            raise ValueError(f"cover {self.name} names a dimension that shape {tuple(shape)} lacks")
        return slice_grids(len(shape), tuple(dims))


@dataclass(frozen=True, repr=False)
class Singleton(GridCover):
    """One set per entry, which is exactly diagonal Adagrad. The state has as many numbers as the tensor."""

    @property
    def name(self) -> str:
        """The name is always `singleton`."""
        return "singleton"

    def grids(self, shape: Sequence[int]) -> list[Grid]:
        """Return the one grid, of single entries.

        Args:
            shape: the shape of the parameter.
        """
        return [(1,) * len(shape)]


@dataclass(frozen=True, repr=False)
class Whole(GridCover):
    """One set with every entry: the whole tensor has one adaptive step size. The state is one number."""

    @property
    def name(self) -> str:
        """The name is always `whole`."""
        return "whole"

    def grids(self, shape: Sequence[int]) -> list[Grid]:
        """Return the one grid, which has a single block.

        Args:
            shape: the shape of the parameter.
        """
        return [(0,) * len(shape)]


@dataclass(frozen=True, repr=False)
class Blocks(GridCover):
    """Rectangular blocks of one size. They form a partition, so each entry is in exactly one set.

    Args:
        lengths: the block length along each dimension; -1 stands for the whole dimension. A tensor of lower rank uses
            the first lengths. A tensor of higher rank takes its remaining dimensions whole.

    Raises:
        ValueError: there is no length, or a length is neither positive nor -1.
    """

    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.lengths or any(length == 0 or length < -1 for length in self.lengths):
            raise ValueError(f"block lengths must be positive, or -1 for a whole one, not {self.lengths}")

    @property
    def name(self) -> str:
        """The name, for example `blocks(64,64)`."""
        return f"blocks({','.join(map(str, self.lengths))})"

    def grids(self, shape: Sequence[int]) -> list[Grid]:
        """Return the one grid.

        Args:
            shape: the shape of the parameter.
        """
        lengths = (*self.lengths, *[-1] * len(shape))[: len(shape)]
        return [tuple(max(length, 0) for length in lengths)]


@dataclass(frozen=True, repr=False)
class Union(GridCover):
    """Several grid covers at once. Their sets overlap, and the smallest accumulator of an entry counts.

    Args:
        covers: the covers to join, for example `(Slices(), Blocks((64, 64)))`.

    Raises:
        ValueError: there is no cover, or one of them is not a grid cover.
    """

    covers: tuple[GridCover, ...]

    def __post_init__(self) -> None:
        if not self.covers or not all(isinstance(cover, GridCover) for cover in self.covers):
            raise ValueError("a union takes one or more of Slices, Singleton, Whole and Blocks")

    @property
    def name(self) -> str:
        """The name, for example `slices+blocks(64,64)`."""
        return "+".join(cover.name for cover in self.covers)

    def grids(self, shape: Sequence[int]) -> list[Grid]:
        """Return the grids of all the covers.

        Args:
            shape: the shape of the parameter.
        """
        return [grid for cover in self.covers for grid in cover.grids(shape)]


NAMED: dict[str, GridCover] = {
    "slices": Slices(),
    "rows": Slices((0,)),
    "singleton": Singleton(),
    "whole": Whole(),
}
