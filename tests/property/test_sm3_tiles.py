"""Tiles: every entry in exactly one, none too large, and no accumulator overwritten that another tile still needs."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sm3 import Blocks, Slices, Union
from sm3.kernels import tiles
from sm3.kernels.tiles import owned_by_tiles, tile_steps

SHAPES = st.lists(st.integers(0, 9), max_size=5).map(tuple)
COVERS = st.sampled_from([Slices(), Blocks((2, 3)), Blocks((-1, 4)), Union((Slices(), Blocks((3, 2, 2))))])


@settings(max_examples=200)
@given(SHAPES, COVERS, st.integers(1, 50), st.sampled_from([1, 10**6]))
def test_tiles_partition_the_tensor_within_the_limit(shape, cover, limit, vectors) -> None:
    before, tiles.VECTORS = tiles.VECTORS, vectors
    try:
        steps = tile_steps(shape, cover.grids(shape), limit=limit)
    finally:
        tiles.VECTORS = before
    count = torch.zeros(shape, dtype=torch.int64)
    for tile in tiles.tiles(shape, steps):
        assert 0 < count[tile].numel() <= limit
        count[tile] += 1
    assert (count == 1).all()


@settings(max_examples=200)
@given(SHAPES.filter(lambda shape: 0 not in shape), COVERS, st.integers(1, 50))
def test_owned_means_that_no_block_is_shared_by_two_tiles(shape, cover, limit) -> None:
    steps = tile_steps(shape, cover.grids(shape), limit=limit)
    tile_of = torch.zeros(shape, dtype=torch.int64)
    for number, tile in enumerate(tiles.tiles(shape, steps)):
        tile_of[tile] = number
    for grid in cover.grids(shape):
        single = all(
            len(tile_of.flatten()[members].unique()) == 1 for members in Union((_Fixed(grid),)).index_sets(shape)
        )
        if owned_by_tiles(shape, steps, grid):
            assert single


class _Fixed(Slices):
    """The cover of one grid."""

    def __init__(self, grid: tuple[int, ...]) -> None:
        super().__init__()
        object.__setattr__(self, "_grid", grid)

    def grids(self, shape):
        return [self._grid]


@settings(max_examples=100)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=3).map(tuple))
def test_int8_tiles_end_where_blocks_of_momentum_end(shape) -> None:
    """Tiles of the least size allowed: rows that are cut are cut at multiples of 256 entries."""
    steps = tile_steps(shape, entries=256, limit=1 << 16)
    cut = [dim for dim, (step, size) in enumerate(zip(steps, shape, strict=True)) if step < size]
    if cut:
        inner = steps[cut[-1]] * math.prod(shape[cut[-1] + 1 :])
        first_inner = max(d for d in range(len(shape)) if d == 0 or math.prod(shape[d:]) >= 256)
        assert cut[-1] < first_inner or inner % 256 == 0
