"""What every kernel is given: one parameter, its gradient, its accumulators and the options of its group."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..covers import Grid
from .momentum import Momentum

MIN_EPS = 2.0**-63
"""The least `eps`: its square is the smallest normal float32, safe where subnormals are flushed."""


@dataclass(frozen=True)
class Options:
    """The options of one parameter group, as numbers a kernel can use."""

    lr: float | Tensor
    momentum: float
    beta: float
    eps: float
    weight_decay: float
    maximize: bool
    variant: str

    @property
    def sign(self) -> float:
        """Return -1 where the objective is maximized: the gradient counts with this sign."""
        return -1.0 if self.maximize else 1.0


@dataclass
class Accumulator:
    """The accumulators of one grid of a cover.

    Args:
        old: the values before this step, float32, one per block, shaped to broadcast over blocks of the
            parameter.
        grid: the block length along each dimension.
        new: where the values after this step are gathered; `old` itself where no tile reads what another one
            wrote.
    """

    old: Tensor
    grid: Grid
    new: Tensor | None = None

    @property
    def in_place(self) -> bool:
        """Say whether new values may overwrite old ones tile by tile."""
        return self.new is self.old


@dataclass
class Task:
    """One parameter's share of a step.

    Args:
        param: the parameter; where it is sharded, this rank's part.
        grad: its gradient, dense, of the same shape.
        accumulators: one per grid of its cover.
        momentum: the momentum buffer, if any.
        options: the options of its group.
        steps: the length of a tile along each dimension; `chunked.prepare` chooses it.
    """

    param: Tensor
    grad: Tensor
    accumulators: list[Accumulator]
    momentum: Momentum | None
    options: Options
    steps: tuple[int, ...] = field(default=())


class Scratch:
    """The float32 work space of a step: flat buffers of at most one tile, dropped when the step ends."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.device], Tensor] = {}

    def take(self, use: str, like: Tensor) -> Tensor:
        """Return an uninitialized float32 buffer of the tile's shape, the same memory for the same use."""
        key = (use, like.device)
        numel = like.numel()
        if key not in self._buffers or self._buffers[key].numel() < numel:
            self._buffers.pop(key, None)
            self._buffers[key] = torch.empty(numel, dtype=torch.float32, device=like.device)
        return self._buffers[key][:numel].view(like.shape)
