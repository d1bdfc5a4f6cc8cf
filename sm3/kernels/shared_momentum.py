"""The int8 momentum of a part of a parameter whose blocks of 256 entries are spread over several ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .momentum import INT8_BLOCK, Momentum, first_inner
from .scratch import Scratch
from .tiles import Tile


class SharedInt8Momentum(Momentum):
    """The same as `Int8Momentum`, bit for bit. Every rank that has a part of a block keeps the block's scale.

    A scale depends on the entries of other ranks, so a step takes two passes. The first pass changes only `largest`,
    whose maxima the ranks then join. The second pass computes the same averages again and stores them.

    Args:
        buffer: q, int8, of the part's shape.
        scale: float32, the scales of all blocks of which the rank has a part. They span whole inner dimensions.
        shape: the shape of the whole parameter.
        starts: the index at which the part begins along each dimension.
    """

    def __init__(self, buffer: Tensor, scale: Tensor, shape: Sequence[int], starts: Sequence[int]) -> None:
        self.buffer, self.scale = buffer, scale
        self.largest = torch.zeros_like(scale)
        self._shape, self._starts, self._from = shape, starts, first_inner(shape)

    def _numbers(self, tile: Tile) -> Tensor:
        """Return the block number of each entry of a tile's inner dimensions, int64."""
        number = torch.zeros(1, dtype=torch.int64, device=self.buffer.device)
        for dim in range(self._from, len(self._shape)):
            first = self._starts[dim] + tile[dim].start
            along = torch.arange(first, first + tile[dim].stop - tile[dim].start, device=number.device)
            number = (number.unsqueeze(-1) * self._shape[dim] + along).flatten()
        return number.div_(INT8_BLOCK, rounding_mode="floor")

    def _of_entries(self, scales: Tensor, tile: Tile) -> Tensor:
        """Return, for each entry, the value of its block. The tile's inner dimensions are flattened into one."""
        return scales[tile[: self._from]].index_select(-1, self._numbers(tile))

    def decayed(self, tile: Tile, like: Tensor, momentum: float, scratch: Scratch) -> Tensor:
        """See `Momentum.decayed`."""
        average = scratch.take("target", like).copy_(self.buffer[tile])
        average.flatten(self._from).mul_(self._of_entries(self.scale, tile))
        return average.mul_(momentum)

    def measure(self, tile: Tile, average: Tensor) -> None:
        """Raise `largest` to the magnitudes of one tile, in the first pass.

        Args:
            tile: the part of the parameter.
            average: the new average of the tile, float32.
        """
        values = average.flatten(self._from).abs()
        numbers = self._numbers(tile).expand_as(values)
        self.largest[tile[: self._from]].scatter_reduce_(-1, numbers, values, "amax")

    def store(self, tile: Tile, average: Tensor, scratch: Scratch) -> None:
        """See `Momentum.store`. By then `largest` holds the maxima over all ranks."""
        rounded = scratch.take("nu", average).copy_(average)
        scale = self._of_entries(self.largest, tile).div_(127)
        rounded.flatten(self._from).div_(scale.clamp_min_(torch.finfo(torch.float32).tiny))
        self.buffer[tile].copy_(rounded.round_())

    def finish(self) -> None:
        """Replace the old scales by the new ones, after the second pass."""
        self.scale.copy_(self.largest.div_(127))
