"""Int8 momentum of a part of a parameter, where other ranks hold other parts of the same blocks of 256 entries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .momentum import INT8_BLOCK, Momentum, first_inner
from .scratch import Scratch
from .tiles import Tile


class SharedInt8Momentum(Momentum):
    """As `Int8Momentum`, bit for bit, with the scales of whole blocks on every rank that has a part of them.

    A scale depends on other ranks' entries, so a step takes two passes: the first changes nothing but `largest`, whose
    maxima the ranks then join; the second computes the same averages again and keeps them.

    Args:
        buffer: q, int8, of the part's shape.
        scale: float32, the scales of all blocks that the rank has a part of: those of whole inner dimensions.
        shape: the shape of the whole parameter.
        starts: where the part begins along each dimension.
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
        """Return the value of each entry's block: the tile's outer dimensions, then its inner entries in one."""
        return scales[tile[: self._from]].index_select(-1, self._numbers(tile))

    def decayed(self, tile: Tile, like: Tensor, momentum: float, scratch: Scratch) -> Tensor:
        """See `Momentum.decayed`."""
        average = scratch.take("target", like).copy_(self.buffer[tile])
        average.flatten(self._from).mul_(self._of_entries(self.scale, tile))
        return average.mul_(momentum)

    def measure(self, tile: Tile, average: Tensor) -> None:
        """First pass: raise `largest` to the magnitudes of one tile."""
        values = average.flatten(self._from).abs()
        numbers = self._numbers(tile).expand_as(values)
        self.largest[tile[: self._from]].scatter_reduce_(-1, numbers, values, "amax")

    def store(self, tile: Tile, average: Tensor, scratch: Scratch) -> None:
        """See `Momentum.store`; `largest` is that of all ranks."""
        rounded = scratch.take("nu", average).copy_(average)
        scale = self._of_entries(self.largest, tile).div_(127)
        rounded.flatten(self._from).div_(scale.clamp_min_(torch.finfo(torch.float32).tiny))
        self.buffer[tile].copy_(rounded.round_())

    def finish(self) -> None:
        """After the second pass: the new scales become the old ones."""
        self.scale.copy_(self.largest.div_(127))
