"""The input of every kernel: one parameter, its gradient, its accumulators and the options of its group."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from . import tiles
from .accumulators import Accumulator, GridAccumulator
from .momentum import FloatMomentum, Int8Momentum, Momentum

MIN_EPS = 2.0**-63
"""The smallest `eps`. Its square is the smallest normal float32, which is safe where subnormals are flushed."""


@dataclass(frozen=True)
class Options:
    """The options of one parameter group, as numbers that a kernel can use. `sm3.SM3` explains them."""

    lr: float | Tensor
    momentum: float
    beta: float
    eps: float
    weight_decay: float
    maximize: bool
    variant: str

    @classmethod
    def of(cls, group: dict[str, Any]) -> Options:
        """Return the options of a parameter group.

        Args:
            group: a parameter group of the optimizer.
        """
        return cls(*[group[name] for name in OPTION_NAMES])

    @property
    def sign(self) -> float:
        """The factor of the gradient: -1 if the objective is maximized, otherwise 1."""
        return -1.0 if self.maximize else 1.0


OPTION_NAMES = tuple(option.name for option in fields(Options))


@dataclass
class Task:
    """One parameter's share of a step.

    Args:
        param: the parameter; if it is sharded, this rank's part.
        grad: the gradient, of the same shape.
        accumulators: one per tensor of the cover.
        momentum: the momentum buffer, if there is one.
        options: the options of the group.
        steps: the length of a tile along each dimension, which `chunked.prepare` chooses.
        positive: whether every accumulator is known to be at least eps^2, which `chunked.prepare` finds out.
        measuring: whether this is a first pass that only measures the momentum; see `shared_momentum.py`.
    """

    param: Tensor
    grad: Tensor
    accumulators: list[Accumulator]
    momentum: Momentum | None
    options: Options
    steps: tuple[int, ...] = field(default=())
    positive: bool = False
    measuring: bool = False

    def tile_limit(self) -> int:
        """Return the most elements of a tile with which its buffers fit into 3 MiB.

        Two buffers suffice for float32 tensors that lie alike in memory. Four are needed if tensors must be converted
        or copied. A tensor of rank 3 or more also needs up to half a buffer for its maxima. Larger tiles need fewer
        calls.
        """
        tensors = [self.param, self.grad]
        if self.momentum is not None:
            if not isinstance(self.momentum, FloatMomentum):
                return tiles.TILE // (1 if isinstance(self.momentum, Int8Momentum) else 2)
            tensors.append(self.momentum.buffer)
        if any(tensor.dtype != torch.float32 or not tensor.is_contiguous() for tensor in tensors):
            return tiles.TILE
        return tiles.TILE * (3 if self.param.dim() <= 2 else 2)

    def in_memory_order(self) -> Task:
        """Return the same task with the dimensions ordered by stride, so that tiles are contiguous in memory.

        This matters for `channels_last` and transposed parameters. A task with int8 momentum keeps its own order.
        """
        strides = self.param.stride()
        order = sorted(range(len(strides)), key=lambda dim: -strides[dim])
        if order == sorted(order) or not isinstance(self.momentum, FloatMomentum | None):
            return self
        accumulators: list[Accumulator] = [
            a.permuted(order) for a in self.accumulators if isinstance(a, GridAccumulator)
        ]
        momentum = FloatMomentum(self.momentum.buffer.permute(order)) if self.momentum else None
        param, grad = self.param.permute(order), self.grad.permute(order)
        return replace(self, param=param, grad=grad, accumulators=accumulators, momentum=momentum)

    def flattened(self) -> Task:
        """Return the same task with the parameter as a vector, which a cover by index sets needs.

        Raises:
            ValueError: the parameter is not contiguous, or the momentum is int8, whose blocks follow the shape.
        """
        if not self.param.is_contiguous():
            raise ValueError("a cover by index sets needs a contiguous parameter: call contiguous() on it")
        if not isinstance(self.momentum, FloatMomentum | None):
            raise ValueError("a cover by index sets takes momentum_dtype float32 or bfloat16, not int8")
        momentum = FloatMomentum(self.momentum.buffer.view(-1)) if self.momentum else None
        return replace(self, param=self.param.view(-1), grad=self.grad.reshape(-1), momentum=momentum)
