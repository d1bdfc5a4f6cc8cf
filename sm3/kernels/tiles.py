"""The division of a tensor into tiles, so that a step's temporaries have a bounded size for every tensor."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from ..covers import Grid

TILE = 1 << 17
"""The elements of a tile if four buffers are needed, of 512 KiB each in float32."""

VECTORS = 1 << 17
"""The sum of dimensions above which the longest dimension is cut first, as a second copy of its accumulators would be
too large.
"""

Tile = tuple[slice, ...]


def tile_steps(
    shape: Sequence[int], grids: Sequence[Grid] = (), entries: int = 1, limit: int | None = None
) -> tuple[int, ...]:
    """Return the length of a tile along each dimension.

    Usually the first dimension is cut first, so that tiles are contiguous. The exception is a tensor such as a 2 x
    50,000,000 table, where a second copy of the other dimensions' accumulators would be large. Then the longest
    dimension is cut first, and only the short dimensions need a second copy.

    Args:
        shape: the shape of the tensor.
        grids: the grids of the cover. If possible, tiles end where blocks end.
        entries: the number of consecutive entries in a block of int8 momentum. Tiles end at its multiples, which takes
            precedence over the grids, and a middle dimension is then never cut first.
        limit: the most elements of a tile; None for `TILE`.
    """
    limit = limit or TILE
    order = list(range(len(shape)))
    if sum(shape) > VECTORS:
        order.sort(key=lambda dim: -shape[dim])
    if entries > 1 and shape and (order[0] != len(shape) - 1 or entries * math.prod(shape[:-1]) > limit):
        order.sort()
    steps = list(shape)
    for dim in order:
        if math.prod(steps) <= limit:
            break
        blocks = [entries] if entries > 1 else [grid[dim] for grid in grids]
        steps[dim] = _step(shape[dim], limit // (math.prod(steps) // steps[dim]), blocks)
    return tuple(steps)


def _step(size: int, most: int, blocks: Sequence[int]) -> int:
    """Return an even step along one dimension, which is a multiple of the blocks cut there if possible."""
    most = max(1, most)
    multiple = math.lcm(*(block for block in blocks if 0 < block < size))
    multiple = multiple if multiple <= most else 1
    parts = -(-size // (most - most % multiple))
    even = -(-size // parts)
    return even + -even % multiple


def tiles(shape: Sequence[int], steps: Sequence[int]) -> Iterator[Tile]:
    """Yield the tiles of a tensor: none if it is empty, and one `()` if it is 0-dimensional.

    Args:
        shape: the shape of the tensor.
        steps: the length of a tile along each dimension.
    """
    if 0 in shape:
        return
    ranges = [
        [slice(start, min(start + step, size)) for start in range(0, size, step)]
        for size, step in zip(shape, steps, strict=True)
    ]
    yield from itertools.product(*ranges)


def are_runs(shape: Sequence[int], steps: Sequence[int]) -> bool:
    """Return whether each tile of a contiguous tensor is contiguous in memory.

    Args:
        shape: the shape of the tensor.
        steps: the length of a tile along each dimension.
    """
    cut = next((dim for dim, step in enumerate(steps) if step > 1), len(steps))
    return all(step >= size for size, step in zip(shape[cut + 1 :], steps[cut + 1 :], strict=True))


def owned_by_tiles(shape: Sequence[int], steps: Sequence[int], grid: Grid) -> bool:
    """Return whether each block of a grid lies in one tile, which may then overwrite the block's accumulator.

    Args:
        shape: the shape of the tensor.
        steps: the length of a tile along each dimension.
        grid: the block length along each dimension, where 0 stands for the whole dimension.
    """
    return all(step >= n or (block and step % block == 0) for n, step, block in zip(shape, steps, grid, strict=True))
