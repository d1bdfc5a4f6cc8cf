"""What cuDNN takes for a convolution: decided by its heuristics, known here within limits.

cuDNN's documentation has engines that need nothing (implicit GEMM, fused Winograd) and engines that lay their operands
out anew: tensor cores read channels last, so a float32 (TF32) convolution of tensors in PyTorch's default layout
copies input, weight and output on its way (`nchwToNhwcKernel` in profiles). PyTorch takes the first plan of the
heuristics whose workspace can be had (`aten/src/ATen/native/cudnn/Conv_v8.cpp`, `try_configs`), and a smaller one if
memory is short.

The estimate is that nothing is taken; the limits are nothing and those copies. On 27 of the measured runs of
convolutional networks in `tests/accuracy/xmem` the median error is 1.8 % so, and 3.5 % with the copies.
Before compute capability 8.0 there is no TF32, and channels last needs no copies: nothing is assumed to be taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from memprof.simulation.fake_events import Steps
from memprof.simulation.target import Target
from memprof.simulation.workspaces_reductions import part_bytes, reduction_buffers
from memprof.tracing.events import SizeLimits

aten = torch.ops.aten
_SOURCE = "cuDNN convolution workspaces"
_NOTHING = 1  # byte: a block that has limits has to be there


def convolution_scratch(target: Target) -> Mapping[Any, Callable[[tuple[Any, ...], dict[str, Any]], Steps]]:
    """Return, by operator, what it takes."""
    return {
        aten.convolution.default: partial(_forward, target),
        aten.convolution_backward.default: partial(_backward, target),
    }


def _forward(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps:
    image, weight = args[:2]
    stride, padding, dilation, transposed, _, groups = args[3:9]
    if _is_native_depthwise(image, weight, groups) or transposed:
        return []
    each = [_each(values, image) for values in (stride, padding, dilation)]
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(image.shape[2:], weight.shape[2:], *each, strict=True)
    ]
    output = image.shape[0] * weight.shape[0] * math.prod(size) * image.element_size()
    return [None, *_workspace(target, image, weight, output, groups)]


def _backward(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps:
    gradient, image, weight, bias = args[:4]
    transposed, groups, (needs_input, needs_weight, needs_bias) = args[7], args[9], args[10]
    steps: list[Any] = [None]
    if not transposed and not _is_native_depthwise(image, weight, groups):
        for needed in (needs_input, needs_weight):
            work = _workspace(target, image, weight, _bytes(gradient), groups) if needed else []
            steps += [*work, *([-_taken(steps) - 1] if work else [])]
    if needs_bias and bias:
        dims = [0, *range(2, gradient.dim())]
        steps += reduction_buffers(target, gradient, dims, part_bytes(gradient.dtype))
    return steps


def _taken(steps: list[Any]) -> int:
    return sum(step is not None and not (isinstance(step, int) and step < 0) for step in steps)


def _workspace(target: Target, image: Tensor, weight: Tensor, output: int, groups: int) -> list[tuple[int, SizeLimits]]:
    copies = _bytes(image) + _bytes(weight) + output
    depthwise = groups > 1 and groups == image.shape[1]
    if target.capability < (8, 0) or (_is_channels_last(image) and not depthwise):
        return []
    return [(_NOTHING, SizeLimits(0, copies, _SOURCE))]


def _is_native_depthwise(image: Tensor, weight: Tensor, groups: int) -> bool:
    """PyTorch's own kernel takes nothing (`use_cudnn_depthwise` in Convolution.cpp)."""
    depthwise = groups > 1 and groups == image.shape[1] and weight.shape[0] % groups == 0
    return depthwise and image.dtype is torch.float32 and not _is_channels_last(image)


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _each(values: list[int], image: Tensor) -> list[int]:
    return list(values) * (image.dim() - 2) if len(values) == 1 else list(values)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
