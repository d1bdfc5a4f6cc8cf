"""A tensor under the default cover, treated as a matrix with one accumulator per row and per column."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from ..covers import slice_grids
from .accumulators import GridAccumulator
from .task import Task
from .tiles import VECTORS


@dataclass
class MatrixView:
    """The accumulators of the rows and columns. A kernel reads them and may overwrite them.

    Args:
        row: float32, of shape (rows,): for each row the smallest accumulator of the leading dimensions.
        column: float32, of shape (cols,): for each column the smallest accumulator of the other dimensions.
        kept: for each side, the accumulators from which it was made.
    """

    row: Tensor
    column: Tensor
    kept: tuple[list[Tensor], list[Tensor]]

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.row.numel()

    @property
    def cols(self) -> int:
        """The number of columns."""
        return self.column.numel()

    def write_back(self) -> None:
        """Store the maxima that a kernel left in `row` and `column` in the parameter's accumulators."""
        for side, kept in zip((self.row, self.column), self.kept, strict=True):
            if len(kept) == 1:
                continue  # the side is a view, so the kernel has written to it
            table = side.view(torch.broadcast_shapes(*(vector.shape for vector in kept)))
            for vector in kept:
                rest = [dim for dim, size in enumerate(vector.shape) if size != table.shape[dim]]
                vector.copy_(table.amax(rest, keepdim=True) if rest else table)


def is_matrix(task: Task) -> bool:
    """Return whether `as_matrix` can treat a task as a matrix.

    The cover must be the codimension-1 slices and the rank at least 2. A tensor of rank 3 or more must not need many
    combined accumulators, as they are temporaries.

    Args:
        task: a dense task.
    """
    shape = task.param.shape
    if len(shape) < 2 or 0 in shape:
        return False
    grids = [a.grid for a in task.accumulators if isinstance(a, GridAccumulator)]
    if sorted(grids, reverse=True) != slice_grids(len(shape), tuple(range(len(shape)))):
        return False
    if task.options.variant == "I" and sum(shape) > VECTORS:
        return False  # all maxima would need a second copy
    return len(shape) == 2 or sum(_sides(shape, _cut(shape))) <= VECTORS


def _sides(shape: torch.Size, cut: int) -> tuple[int, int]:
    return math.prod(shape[:cut]), math.prod(shape[cut:])


def _cut(shape: torch.Size) -> int:
    return min(range(1, len(shape)), key=lambda cut: sum(_sides(shape, cut)))


def as_matrix(task: Task, new: bool = False) -> MatrixView:
    """Return a task's accumulators as those of a matrix.

    Args:
        task: a task for which `is_matrix` is true and whose parameter is contiguous.
        new: whether to take the accumulators' new values instead of the old ones.
    """
    vectors: dict[int, Tensor] = {}
    for accumulator in task.accumulators:
        assert isinstance(accumulator, GridAccumulator)
        value = accumulator.new if new else accumulator.old
        assert value is not None
        vectors[accumulator.grid.index(1)] = value
    cut = _cut(task.param.shape)
    lead = [vectors[dim] for dim in range(cut)]
    rest = [vectors[dim] for dim in range(cut, len(vectors))]
    return MatrixView(_combined(lead), _combined(rest), (lead, rest))


def _combined(vectors: list[Tensor]) -> Tensor:
    return reduce(torch.minimum, vectors).reshape(-1)


def is_singleton(task: Task) -> bool:
    """Return whether every entry has its own accumulator (diagonal Adagrad). SM3-I and SM3-II are then the same.

    Args:
        task: a dense task.
    """
    only = task.accumulators[0]
    return len(task.accumulators) == 1 and isinstance(only, GridAccumulator) and set(only.grid) <= {1}
