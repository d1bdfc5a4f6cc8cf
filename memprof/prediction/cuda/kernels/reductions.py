"""The memory that sums over a tensor take on a GPU when several blocks of threads work on one output.

Each block writes its partial result to a buffer. If the fastest dimension is kept, the buffer is larger than necessary,
because the count of outputs, which already includes the threads that share a block, is multiplied by them again.
The gradient of a bias of 3,072 entries over 8,192 rows takes 108 MiB on an A100. Source: `setReduceConfig`,
`global_memory_size` and `semaphore_size` in `aten/src/ATen/native/cuda/Reduce.cuh`, the same in 2.6 and 2.15.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memprof.devices.target import Target

_WARP, _THREADS, _VECTOR = 32, 512, 4
_LEAST_VALUES, _MOST_VALUES = 16, 256  # per thread
_SEMAPHORE = 4
_FEW = 2**31


def threads_per_multiprocessor(capability: tuple[int, int]) -> int:
    """Return how many threads a multiprocessor holds (CUDA C++ programming guide, compute capabilities).

    Args:
        capability: The compute capability, major and minor.
    """
    major, minor = capability
    if (major, minor) == (7, 5):
        return 1024
    return 1536 if major == 12 or (major == 8 and minor in (6, 9)) else 2048


def reduction_buffers(target: Target, tensor: Tensor, dims: Sequence[int] | None, part: int = 4) -> list[int]:
    """Return the bytes of the buffer and of the semaphores; nothing if a single block computes each output.

    Args:
        target: The device.
        tensor: The tensor that is reduced.
        dims: The dimensions that are reduced; all of them if None or empty.
        part: The bytes of a partial result.
    """
    if not 0 < tensor.numel() < _FEW:
        return []
    axes = _axes(tensor, dims)
    return _ReduceConfig(axes, part).buffers(target)


@dataclass(frozen=True)
class _Dimension:
    size: int
    stride: int
    reduced: bool


def _axes(tensor: Tensor, dims: Sequence[int] | None) -> list[_Dimension]:
    """Return the dimensions of the tensor, the one with the smallest stride first, with adjacent ones joined."""
    over = {dim % tensor.dim() for dim in dims} if dims and tensor.dim() else set(range(tensor.dim()))
    plain = [_Dimension(n, s, d in over) for d, (n, s) in enumerate(zip(tensor.shape, tensor.stride(), strict=True))]
    joined: list[_Dimension] = []
    for axis in sorted((axis for axis in reversed(plain) if axis.size > 1), key=lambda axis: axis.stride):
        last = joined[-1] if joined else None
        if last and last.reduced == axis.reduced and last.size * last.stride == axis.stride:
            joined[-1] = _Dimension(last.size * axis.size, last.stride, last.reduced)
        else:
            joined.append(axis)
    return joined


class _ReduceConfig:
    """The division of a reduction among threads, as `setReduceConfig` chooses it."""

    def __init__(self, axes: list[_Dimension], part: int) -> None:
        self._part = part
        self._outputs = _product(axis.size for axis in axes if not axis.reduced)
        self._inputs = _product(axis.size for axis in axes if axis.reduced)
        kept = [axis for axis in axes if not axis.reduced]
        reduced = [axis for axis in axes if axis.reduced]
        self._on_fastest = not kept or bool(reduced and reduced[0].stride < kept[0].stride)
        self._vector = 1
        if not self._on_fastest and kept[0].stride == 1:
            others = [axis.stride for axis in axes if axis is not kept[0]]
            self._vector = max(n for n in (4, 2, 1) if not any(value % n for value in (kept[0].size, *others)))
        one_run = len(reduced) == 1 and reduced[0].stride == 1
        self._width, self._height = self._block(one_run)

    def _block(self, one_run: bool) -> tuple[int, int]:
        along, across = (self._inputs, self._outputs) if self._on_fastest else (self._outputs, self._inputs)
        if self._on_fastest and one_run and along >= 128:
            along //= _VECTOR
        along //= self._vector
        most = _THREADS // self._vector
        along, across = (min(_last_power(size), most) for size in (along, across))
        height = min(across, most // min(along, _WARP))
        return min(along, most // height), height

    def buffers(self, target: Target) -> list[int]:
        """Return the bytes of the buffer and of the semaphores.

        Args:
            target: The device.
        """
        step_input, step_output = (self._width, 1) if self._on_fastest else (1, self._width)
        if -(-self._inputs // step_input) < min(self._height * 16, _MOST_VALUES):
            return []
        step_input *= self._height
        values = -(-self._inputs // step_input)
        grid = -(-(self._outputs // self._vector) // step_output)
        blocks = threads_per_multiprocessor(target.capability) // (self._width * self._height)
        if values < _MOST_VALUES or grid > target.sm_count * blocks:
            return []
        shared = max(-(-values // _MOST_VALUES), -(-target.sm_count * blocks // grid))
        shared = min(shared, -(-values // _LEAST_VALUES))
        if shared <= 1:
            return []
        buffer = self._part * self._outputs * shared
        return [buffer if self._on_fastest else buffer * self._width * self._vector, _SEMAPHORE * grid]


def _product(values: object) -> int:
    result = 1
    for value in values:  # type: ignore[attr-defined]
        result *= value
    return result


def _last_power(number: int) -> int:
    return 1 << (max(number, 1).bit_length() - 1)


def part_bytes(dtype: torch.dtype) -> int:
    """Return the bytes of a partial sum, which is float32 for halves.

    Args:
        dtype: The type of the entries.
    """
    return max(dtype.itemsize, 4)
