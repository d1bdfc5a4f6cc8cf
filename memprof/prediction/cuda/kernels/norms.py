"""The memory that layer norm and RMS norm take: copies of non-contiguous tensors, and partial sums over many rows.

Layer norm copies a non-contiguous input before it makes its output, and again in the backward pass, where it also
copies a non-contiguous gradient (`expect_contiguous` and `contiguous` in the file below).

With more than 65,536 rows and few columns, the gradients of weight and bias are summed in tiles of 32 rows with one row
of partial sums each, and an ordinary reduction sums these. Source: `LaunchGammaBetaBackwardCUDAKernel` in
`aten/src/ATen/native/cuda/layer_norm_kernel.cu`; recordings of 2.8 and 2.15 show
it, one of 2.6 does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from memprof.devices.target import Target
from memprof.prediction.cuda.kernels.reductions import part_bytes, reduction_buffers
from memprof.prediction.fake.event_log import Steps

aten = torch.ops.aten
_MANY_ROWS, _TILE, _WARP = 64 * 1024, 32, 32


def norm_scratch(target: Target) -> Mapping[Any, Callable[[tuple[Any, ...], dict[str, Any]], Steps]]:
    """Return, for each operator of norms, the function that returns its steps.

    Args:
        target: The device and its PyTorch version.
    """
    found: dict[Any, Callable[[tuple[Any, ...], dict[str, Any]], Steps]] = {
        aten.native_layer_norm.default: _layer_norm,
        aten.native_layer_norm_backward.default: partial(_layer_norm_backward, target),
    }
    if hasattr(aten, "_fused_rms_norm_backward"):  # since 2.9
        found[aten._fused_rms_norm_backward.default] = partial(_backward, target, 5)
    return found


def _layer_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps:
    return [*_copy(args[0]), None]


def _layer_norm_backward(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps:
    before, after = _copy(args[1]), _copy(args[0])
    held = len(before) + len(after)
    sums = [step - held if step is not None and step < 0 else step for step in _partial_sums(target, 7, args)]
    return [*before, None, *after, *sums]


def _copy(tensor: Any) -> list[int]:
    return [] if tensor.is_contiguous() else [tensor.numel() * tensor.element_size()]


def _backward(target: Target, place: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps:
    sums = _partial_sums(target, place, args)
    return [None, *sums] if sums else []


def _partial_sums(target: Target, place: int, args: tuple[Any, ...]) -> list[Any]:
    """Return the partial sums. Argument `place` says which gradients are wanted: the input's, weight's and bias's."""
    tensor, shape, wanted = args[1], args[2], args[place]
    columns = math.prod(shape)
    rows = tensor.numel() // columns if columns else 0
    few = columns // _WARP < target.sm_count // 2
    if rows <= _MANY_ROWS or not few or target.torch_version < (2, 7):
        return []
    partial_sums = torch.empty(-(-rows // _TILE), columns, dtype=tensor.dtype, device="meta")
    sums = [partial_sums.numel() * tensor.element_size()] * sum(wanted[1:])
    steps: list[Any] = [*sums]
    for _ in sums:
        buffers = reduction_buffers(target, partial_sums, [0], part_bytes(tensor.dtype))
        first = sum(step is not None and step > 0 for step in steps) + 1
        steps += [*buffers, *(-(first + number) for number in range(len(buffers)))]
    return steps
