"""How the Triton kernel cuts a matrix into programs: plain numbers, for whoever predicts what it allocates too."""

from __future__ import annotations

from typing import NamedTuple

HEIGHT, WIDTH = 16, 128
"""Rows and columns of a tile: four warps can hold it in their registers."""

PROGRAMS = 1 << 10
"""So many programs are to run at least: an H200 has 132 multiprocessors, each of which takes a few at a time."""


class Launch(NamedTuple):
    """A grid of programs.

    Args:
        by_rows: whether each walks along a block of rows, or down a block of columns.
        programs: how many blocks there are.
        shares: how many programs share the walk along one; if more than one, they need a second copy of its maxima.
    """

    by_rows: bool
    programs: int
    shares: int


def launch_of(rows: int, cols: int) -> Launch:
    """Return the grid for a matrix: blocks of its longer side, shared where they are too few to fill a GPU."""
    blocks = (-(-rows // HEIGHT), -(-cols // WIDTH))
    by_rows = rows >= cols
    programs, walk = blocks if by_rows else blocks[::-1]
    return Launch(by_rows, programs, min(walk, -(-PROGRAMS // programs)))
