"""The values of one tile from which the preconditioned gradient is subtracted: the parameter or its momentum."""

from __future__ import annotations

import torch
from torch import Tensor

from .scratch import Scratch
from .shared_momentum import SharedInt8Momentum
from .task import Task
from .tiles import Tile


def float32(tile: Tensor, scratch: Scratch, use: str) -> Tensor:
    """Return a tile itself if it is contiguous and float32, otherwise a copy that is.

    Args:
        tile: the values.
        scratch: the source of the copy's buffer.
        use: the purpose of that buffer; see `Scratch.take`.
    """
    return tile if tile.dtype == torch.float32 and tile.is_contiguous() else scratch.take(use, tile).copy_(tile)


class TileTarget:
    """One tile of a parameter after weight decay, or, with momentum, one tile of the average times `momentum`.

    Args:
        task: the parameter, its momentum and its options.
        tile: the part of the parameter.
        scratch: the source of temporaries.
    """

    def __init__(self, task: Task, tile: Tile, scratch: Scratch) -> None:
        options = task.options
        self._task, self._tile, self._param = task, tile, task.param[tile]
        if options.weight_decay and not task.measuring:
            self._param.mul_(1 - options.lr * options.weight_decay)
        if task.momentum is None:
            self.rate = options.lr * options.sign
            self.values = self._values(scratch)
        else:
            self.rate = (options.momentum - 1) * options.sign
            self.values = task.momentum.decayed(tile, self._param, options.momentum, scratch)

    def _values(self, scratch: Scratch) -> Tensor:
        if self._param.dtype == torch.float64:  # float32 holds only the change, as it could not hold the parameter
            return scratch.take("target", self._param).zero_()
        return float32(self._param, scratch, "target")

    def store(self, scratch: Scratch) -> None:
        """Write the values back, and with momentum compute p <- p - lr m. A pass that measures writes nothing.

        Args:
            scratch: the source of temporaries.
        """
        if self._task.measuring:
            assert isinstance(self._task.momentum, SharedInt8Momentum)
            self._task.momentum.measure(self._tile, self.values)
        elif self._task.momentum is not None:
            self._task.momentum.store(self._tile, self.values, scratch)
            self._add(torch.mul(self.values, -self._task.options.lr, out=scratch.take("nu", self.values)), scratch)
        elif self._param.dtype == torch.float64:
            self._param.add_(self.values)
        elif self.values is self._param:
            torch.autograd.graph.increment_version(self._param)  # as ordinary operations on it would
        else:
            self._param.copy_(self.values)

    def _add(self, update: Tensor, scratch: Scratch) -> None:
        if self._param.dtype in (torch.float32, torch.float64):
            self._param.add_(update)
        else:  # PyTorch would make two temporaries
            self._param.copy_(update.add_(scratch.take("work", update).copy_(self._param)))
