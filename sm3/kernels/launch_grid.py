"""How the Triton kernel divides a matrix among programs.

This module needs no Triton, so that a prediction of the kernel's memory can use it too.
"""

from __future__ import annotations

from typing import NamedTuple

HEIGHT, WIDTH = 16, 128
"""The rows and columns of a tile, which four warps can hold in their registers."""

PROGRAMS = 1 << 10
"""The smallest number of programs to run: an H200 has 132 multiprocessors, and each takes a few at a time."""


class Launch(NamedTuple):
    """A grid of programs.

    Args:
        by_rows: whether each program goes along a block of rows; otherwise it goes down a block of columns.
        programs: the number of blocks.
        shares: the number of programs that share one block. If there are several, they need a second copy of its
            maxima.
    """

    by_rows: bool
    programs: int
    shares: int


def launch_of(rows: int, cols: int) -> Launch:
    """Return the grid of programs for a matrix.

    The blocks are blocks of the longer side. If there are too few of them to fill a GPU, several programs share one.

    Args:
        rows: the number of rows.
        cols: the number of columns.
    """
    blocks = (-(-rows // HEIGHT), -(-cols // WIDTH))
    by_rows = rows >= cols
    programs, walk = blocks if by_rows else blocks[::-1]
    return Launch(by_rows, programs, min(walk, -(-PROGRAMS // programs)))
