"""The momentum buffer: an average of the preconditioned gradient, in float32, bfloat16 or int8."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from .scratch import Scratch
from .tiles import Tile

INT8_BLOCK = 256
"""The number of consecutive entries that share one float32 scale: 1.016 bytes per entry in all."""


class Momentum(ABC):
    """The average m <- momentum m + (1 - momentum) g / sqrt(nu), in place and tile by tile.

    Source: the authors' `sm3.py`.
    """

    block = 1
    """Tiles end at multiples of this number of entries."""

    @abstractmethod
    def decayed(self, tile: Tile, like: Tensor, momentum: float, scratch: Scratch) -> Tensor:
        """Return `momentum` times the average of one tile.

        Args:
            tile: the part of the parameter.
            like: a tensor of the tile's shape.
            momentum: the weight of the past.
            scratch: the source of temporaries.

        Returns:
            A contiguous float32 tensor of the tile's shape, which is the buffer itself if possible.
        """

    @abstractmethod
    def store(self, tile: Tile, average: Tensor, scratch: Scratch) -> None:
        """Keep the new average of one tile.

        Args:
            tile: the part of the parameter.
            average: the tensor that `decayed` returned, after its update.
            scratch: the source of temporaries.
        """


class FloatMomentum(Momentum):
    """A buffer of the parameter's shape in float32 or bfloat16. The arithmetic is float32 in both cases.

    Rounding to bfloat16 changes an entry by at most 2**-9 of itself per step, and by 2**-9 / (1 - momentum) in the long
    run.

    Args:
        buffer: the average m, of the parameter's shape.
    """

    def __init__(self, buffer: Tensor) -> None:
        self.buffer = buffer

    def decayed(self, tile: Tile, like: Tensor, momentum: float, scratch: Scratch) -> Tensor:
        """See `Momentum.decayed`."""
        kept = self.buffer[tile]
        return (kept if _is_run(kept) else scratch.take("target", like).copy_(kept)).mul_(momentum)

    def store(self, tile: Tile, average: Tensor, scratch: Scratch) -> None:
        """See `Momentum.store`."""
        kept = self.buffer[tile]
        if not _is_run(kept):
            kept.copy_(average)


class Int8Momentum(Momentum):
    """Signed bytes with one float32 scale for each block of 256 entries: m = scale * q, |q| <= 127.

    Error: in each step, rounding moves an entry by at most half a scale, which is 1/254 of the largest entry of its
    block. Past errors shrink with the momentum, so the total error stays below M / (254 (1 - momentum)), where M is the
    largest |m| of the block over time. At beta = 0 every |g / sqrt(nu)| <= 1, hence M <= 1.

    Args:
        buffer: q, int8, of the parameter's shape.
        scale: float32, of the shape that `scale_shape` gives.
        inner: the dimension from which on entries count as consecutive, or None for `first_inner` of the buffer's
            shape.
    """

    block = INT8_BLOCK

    def __init__(self, buffer: Tensor, scale: Tensor, inner: int | None = None) -> None:
        self.buffer, self.scale = buffer, scale
        self._from = first_inner(buffer.shape) if inner is None else inner

    def decayed(self, tile: Tile, like: Tensor, momentum: float, scratch: Scratch) -> Tensor:
        """See `Momentum.decayed`."""
        average = scratch.take("target", like).copy_(self.buffer[tile])
        for values, scale in self._blocks(average, self._scales(tile)):
            values.mul_(scale.unsqueeze(-1))
        return average.mul_(momentum)

    def store(self, tile: Tile, average: Tensor, scratch: Scratch) -> None:
        """See `Momentum.store`."""
        rounded = scratch.take("nu", average).copy_(average)
        for values, scale in self._blocks(rounded, self._scales(tile)):
            scale.copy_(torch.linalg.vector_norm(values, torch.inf, dim=-1).div_(127))
            values.div_(scale.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(-1))
        self.buffer[tile].copy_(rounded.round_())

    def _scales(self, tile: Tile) -> Tensor:
        """Return the scales of a tile, with one row for each run of inner entries."""
        if not tile:
            return self.scale.view(1, 1)
        inner, after = tile[self._from], math.prod(self.buffer.shape[self._from + 1 :])
        start, stop = inner.start * after // INT8_BLOCK, -(-inner.stop * after // INT8_BLOCK)
        part = self.scale[tile[: self._from] + (slice(start, stop),)]  # noqa: RUF005
        return part.view(-1, part.shape[-1])

    def _blocks(self, values: Tensor, scales: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Pair the blocks with their scales: first the whole blocks, then the cut blocks at the end of each row."""
        rows = values.view(scales.shape[0], -1)
        whole = rows.shape[1] // INT8_BLOCK
        pairs = []
        if whole:
            blocks = torch.unflatten(rows[:, : whole * INT8_BLOCK], 1, (whole, INT8_BLOCK))
            pairs.append((blocks, scales[:, :whole]))
        if rows.shape[1] % INT8_BLOCK:
            pairs.append((rows[:, None, whole * INT8_BLOCK :], scales[:, whole:]))
        return pairs


def _is_run(values: Tensor) -> bool:
    return values.dtype == torch.float32 and values.is_contiguous()


def first_inner(shape: Sequence[int]) -> int:
    """Return the first inner dimension: the last one from which on there is at least a block of entries.

    Entries count as consecutive from that dimension on.

    Args:
        shape: the shape of the parameter.
    """
    dim = max(len(shape) - 1, 0)
    while dim > 0 and math.prod(shape[dim:]) < INT8_BLOCK:
        dim -= 1
    return dim


def scale_shape(shape: Sequence[int], inner: int | None = None) -> tuple[int, ...]:
    """Return the shape of the scales of int8 momentum.

    Args:
        shape: the shape of the parameter.
        inner: the dimension from which on entries count as consecutive; see `Int8Momentum`.
    """
    dim = first_inner(shape) if inner is None else inner
    return (*shape[:dim], -(-math.prod(shape[dim:]) // INT8_BLOCK))
