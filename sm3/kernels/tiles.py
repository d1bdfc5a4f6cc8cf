"""How a tensor is cut into tiles, so that a step's temporaries have a bounded size whatever the tensor's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from ..covers import Grid

TILE = 1 << 17
"""Elements in a tile where four buffers are needed, 512 KiB each in float32."""

VECTORS = 1 << 17
"""Above this sum of dimensions the longest is cut first: a second copy of its accumulators is too much."""

Tile = tuple[slice, ...]


def tile_steps(
    shape: Sequence[int], grids: Sequence[Grid] = (), entries: int = 1, limit: int | None = None
) -> tuple[int, ...]:
    """Return the length of a tile along each dimension.

    The first dimension is cut first, for contiguous tiles; unless the accumulators of the other dimensions
    are so many that their second copy would be large, as in a 2 x 50,000,000 table: then the longest
    dimension is cut first and only the short ones need a second copy.

    Args:
        shape: the tensor's.
        grids: the cover's; where it can be, tiles end where blocks end.
        entries: tiles end at multiples of this many consecutive entries (a block of int8 momentum), which goes
            before the grids; then a middle dimension is never cut first.
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
    """Return an even step along one dimension, if possible a multiple of the blocks cut there."""
    most = max(1, most)
    multiple = math.lcm(*(block for block in blocks if 0 < block < size))
    multiple = multiple if multiple <= most else 1
    parts = -(-size // (most - most % multiple))
    even = -(-size // parts)
    return even + -even % multiple


def tiles(shape: Sequence[int], steps: Sequence[int]) -> Iterator[Tile]:
    """Yield the tiles of a tensor; none when it is empty, one `()` when it is 0-dimensional."""
    if 0 in shape:
        return
    ranges = [
        [slice(start, min(start + step, size)) for start in range(0, size, step)]
        for size, step in zip(shape, steps, strict=True)
    ]
    yield from itertools.product(*ranges)


def are_runs(shape: Sequence[int], steps: Sequence[int]) -> bool:
    """Say whether each tile of a contiguous tensor is one run of its memory."""
    cut = next((dim for dim, step in enumerate(steps) if step > 1), len(steps))
    return all(step >= size for size, step in zip(shape[cut + 1 :], steps[cut + 1 :], strict=True))


def owned_by_tiles(shape: Sequence[int], steps: Sequence[int], grid: Grid) -> bool:
    """Say whether each block of the grid lies in one tile, which may then overwrite its accumulator."""
    return all(step >= n or (block and step % block == 0) for n, step, block in zip(shape, steps, grid, strict=True))
