"""A tensor under the default cover, seen as a matrix with one accumulator per row and per column."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from .accumulators import GridAccumulator
from .task import Task
from .tiles import VECTORS


@dataclass
class Matrix:
    """Accumulators of the rows and columns, which a kernel reads and may overwrite.

    Args:
        row: float32, (rows,): for each row the least accumulator of the leading dimensions.
        column: float32, (cols,): the same for the other dimensions.
        kept: the accumulators they were made of, for each side.
    """

    row: Tensor
    column: Tensor
    kept: tuple[list[Tensor], list[Tensor]]

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return self.row.numel()

    @property
    def cols(self) -> int:
        """Return the number of columns."""
        return self.column.numel()

    def write_back(self) -> None:
        """Store the maxima that a kernel left in `row` and `column` in the accumulators they stand for."""
        for side, kept in zip((self.row, self.column), self.kept, strict=True):
            if len(kept) == 1:
                continue  # a view: written already
            table = side.view(torch.broadcast_shapes(*(vector.shape for vector in kept)))
            for vector in kept:
                rest = [dim for dim, size in enumerate(vector.shape) if size != table.shape[dim]]
                vector.copy_(table.amax(rest, keepdim=True) if rest else table)


def as_matrix(task: Task, new: bool = False) -> Matrix | None:
    """See a task's accumulators as those of a matrix; None where the cover is not the codimension-1 slices.

    Args:
        task: the task; its parameter contiguous.
        new: take the accumulators' new values instead of the old ones.
    """
    shape, accumulators = task.param.shape, task.accumulators
    slices = [tuple(int(d == dim) for d in range(len(shape))) for dim in range(len(shape))]
    grids = [a.grid if isinstance(a, GridAccumulator) else None for a in accumulators]
    if len(shape) < 2 or 0 in shape or sorted(filter(None, grids)) != sorted(slices) or None in grids:
        return None
    vectors: list[Tensor] = [torch.empty(0)] * len(shape)
    for accumulator, grid in zip(accumulators, grids, strict=True):
        assert grid is not None
        value = accumulator.new if new else accumulator.old
        assert value is not None
        vectors[grid.index(1)] = value
    cut = min(range(1, len(shape)), key=lambda k: math.prod(shape[:k]) + math.prod(shape[k:]))
    if len(shape) > 2 and math.prod(shape[:cut]) + math.prod(shape[cut:]) > VECTORS:
        return None
    lead, rest = vectors[:cut], vectors[cut:]
    return Matrix(_combined(lead), _combined(rest), (lead, rest))


def _combined(vectors: list[Tensor]) -> Tensor:
    return reduce(torch.minimum, vectors).reshape(-1)
