"""The momentum buffer: an average of the preconditioned gradient, in float32, bfloat16 or int8."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .task import Scratch
    from .tiles import Tile


class Momentum(ABC):
    """m <- momentum m + (1 - momentum) g / sqrt(nu), in place, tile by tile (as in the authors' `sm3.py`)."""

    @abstractmethod
    def update(
        self, tile: Tile, grad: Tensor, root: Tensor, momentum: float, sign: float, scratch: Scratch
    ) -> Tensor:
        """Average in one tile of the preconditioned gradient and return the new average in float32.

        Args:
            tile: which part of the parameter.
            grad: the tile's gradient, float32.
            root: the tile's denominator sqrt(nu), float32.
            momentum: the weight of the past.
            sign: -1 when maximizing.
            scratch: where temporaries come from.
        """


class FloatMomentum(Momentum):
    """A buffer of the parameter's shape in float32 or bfloat16; the arithmetic is float32 in both."""

    def __init__(self, buffer: Tensor) -> None:
        self.buffer = buffer

    def update(
        self, tile: Tile, grad: Tensor, root: Tensor, momentum: float, sign: float, scratch: Scratch
    ) -> Tensor:
        """See `Momentum.update`."""
        kept = self.buffer[tile]
        average = kept if kept.dtype == torch.float32 else scratch.take("momentum", grad).copy_(kept)
        average.mul_(momentum).addcdiv_(grad, root, value=sign * (1 - momentum))
        if average is not kept:
            kept.copy_(average)
        return average
