"""The workspaces that cuDNN takes for convolutions. Its heuristics decide, so they are known only within limits.

PyTorch takes the first plan of the heuristics whose workspace fits in memory (`aten/src/ATen/native/cudnn/Conv_v8.cpp`,
`try_configs`), so it takes a smaller one if memory is short. Only cuDNN knows which plan comes first. Since 9.8 it
tells that without a GPU ("Deviceless ahead-of-time compilation" in its documentation). This was done for every
convolution of the measured runs in `tests/accuracy/xmem` (`python -m tests.accuracy.xmem.plans`), and gave these sizes:

| plan | workspace |
|---|---|
| CUDA cores (implicit GEMM, direct, fused Winograd) | none, or a few KiB |
| tensor cores, forward and weight gradient | copies of input, weight and output, each group's channels padded to four |
| tensor cores, input gradient | the same, and the input's gradient with its channels padded to 128 |
| tensor cores, operands channels last already | copies of the two operands that are read |

In PyTorch's default layout the estimate is no workspace, and the limits are zero and the largest of these sizes. cuDNN
often prefers tensor cores, but with the plans of cuDNN 9.8 the predictions of runs with 9.1 become worse, not better
(reports/accuracy.md). In channels last every plan of 9.8 that comes first copies its operands, except those of
depthwise convolutions. These take no workspace, except forward in cuDNN 9.1 (PyTorch 2.4 to 2.6) on compute capability
8.0 to 8.7: the memory that runs on an RTX 3060 reserved agrees with the tensor cores' plan, and that of runs on an RTX
4060 with no workspace. GPUs before compute capability 8.0 have no TF32, and channels last in half precision needs no
copies, so no workspace is assumed for these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from memprof.devices.target import Target
from memprof.prediction.cuda.kernels.reductions import part_bytes, reduction_buffers
from memprof.prediction.fake.event_log import Steps
from memprof.trace.events import SizeLimits

aten = torch.ops.aten
Pass = Literal["forward", "input gradient", "weight gradient"]
SOURCE = "cuDNN convolution workspaces"
_NOTHING = 1  # byte: an estimate of nothing still needs a block to which its limits are attached
_CHANNELS = 4  # tensor cores read 16 bytes at once: four channels of float32
_TILE = 128  # channels that a tile of the input gradient's kernel writes


def convolution_scratch(target: Target) -> Mapping[Any, Callable[[tuple[Any, ...], dict[str, Any]], Steps]]:
    """Return, for each operator of convolutions, the function that returns its steps.

    Args:
        target: The device and its PyTorch version.
    """
    return {
        aten.convolution.default: partial(_forward, target),
        aten.convolution_backward.default: partial(_backward, target),
    }


def _forward(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps:
    image, weight = args[:2]
    stride, padding, dilation, transposed, _, groups = args[3:9]
    if _is_native_depthwise(image, weight, groups) or transposed:
        return []
    each = [per_dimension(values, image) for values in (stride, padding, dilation)]
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(image.shape[2:], weight.shape[2:], *each, strict=True)
    ]
    output = [image.shape[0], weight.shape[0], *size]
    return [None, *_weight_copy(image, weight), *_workspace(target, "forward", image, weight, output, groups)]


def _backward(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps:
    gradient, image, weight, bias = args[:4]
    transposed, groups, (needs_input, needs_weight, needs_bias) = args[7], args[9], args[10]
    through_cudnn = not transposed and not _is_native_depthwise(image, weight, groups)
    steps: list[Any] = [*(_gradient_copy(image, gradient) if through_cudnn else []), None]
    passes: list[tuple[bool, Pass]] = [(needs_input, "input gradient"), (needs_weight, "weight gradient")]
    for needed, which in passes:
        if needed and through_cudnn:
            first = _taken(steps) + 1
            steps += _weight_copy(image, weight) if which == "input gradient" else []
            steps += _workspace(target, which, image, weight, gradient.shape, groups)
            steps += [-number for number in range(first, _taken(steps) + 1)]
    if needs_bias and bias:
        dims = [0, *range(2, gradient.dim())]
        steps += reduction_buffers(target, gradient, dims, part_bytes(gradient.dtype))
    return steps


def _taken(steps: list[Any]) -> int:
    return sum(step is not None and not (isinstance(step, int) and step < 0) for step in steps)


def _workspace(
    target: Target, which: Pass, image: Tensor, weight: Tensor, output: Sequence[int], groups: int
) -> list[tuple[int, SizeLimits]]:
    depthwise = groups > 1 and groups == image.shape[1]
    last = is_channels_last(image)
    if target.capability < (8, 0) or (last and not depthwise and image.dtype is not torch.float32):
        return []
    high = tensor_core_bytes(which, image, weight, output, groups)
    point = 0
    if last and depthwise:
        point = high if _lays_out_depthwise(target, which, image) else 0
    elif last:
        point = _operand_bytes(which, image, weight, output)
    return [(max(point, _NOTHING), SizeLimits(0, max(point, high), SOURCE))]


def _weight_copy(image: Tensor, weight: Tensor) -> list[int]:
    """Return the copy of the weight in the input's memory format (`cudnn_convolution_forward` in ConvShared.cpp)."""
    last = torch.channels_last
    return [_bytes(weight)] if is_channels_last(image) and not weight.is_contiguous(memory_format=last) else []


def _gradient_copy(image: Tensor, gradient: Tensor) -> list[int]:
    """Return the gradient's copy in the input's memory format (`cudnn_convolution_backward` in ConvShared.cpp)."""
    wanted = torch.channels_last if is_channels_last(image) else torch.contiguous_format
    return [] if gradient.is_contiguous(memory_format=wanted) else [_bytes(gradient)]


def _lays_out_depthwise(target: Target, which: Pass, image: Tensor) -> bool:
    old = (2, 4) <= target.torch_version < (2, 7) and (8, 0) <= target.capability < (8, 9)
    return old and which == "forward" and image.dtype is torch.float32


def tensor_core_bytes(which: Pass, image: Tensor, weight: Tensor, output: Sequence[int], groups: int) -> int:
    """Return the workspace in bytes of the tensor cores' plan if it copies all operands.

    Args:
        which: The pass.
        image: The input, [batch, channels, *sizes].
        weight: The weight, [output channels, channels per group, *sizes].
        output: The shape of the output.
        groups: The number of groups of channels.
    """
    padded = _padded(image.shape[1], groups)
    size = math.prod(image.shape) // image.shape[1] * padded
    size += math.prod(output) // output[1] * _padded(output[1], groups)
    size += math.prod(weight.shape) // math.prod(weight.shape[:2]) * _padded(weight.shape[0], groups) * padded // groups
    if which == "input gradient" and groups == 1:
        size += math.prod(image.shape) // image.shape[1] * (-(-image.shape[1] // _TILE) * _TILE)
    return size * image.element_size()


def _padded(channels: int, groups: int) -> int:
    return -(-channels // groups // _CHANNELS) * _CHANNELS * groups


def _operand_bytes(which: Pass, image: Tensor, weight: Tensor, output: Sequence[int]) -> int:
    """Return the bytes of the two operands that a pass reads."""
    sizes = {"input": image.numel(), "weight": weight.numel(), "output": math.prod(output)}
    written = {"forward": "output", "input gradient": "input", "weight gradient": "weight"}[which]
    return (sum(sizes.values()) - sizes[written]) * image.element_size()


def _is_native_depthwise(image: Tensor, weight: Tensor, groups: int) -> bool:
    """Return whether PyTorch's own kernel runs, which takes no memory (`use_cudnn_depthwise` in Convolution.cpp)."""
    depthwise = groups > 1 and groups == image.shape[1] and weight.shape[0] % groups == 0
    return depthwise and image.dtype is torch.float32 and not is_channels_last(image)


def is_channels_last(tensor: Tensor) -> bool:
    """Return whether a tensor has the channels-last memory format and is not contiguous as well.

    Args:
        tensor: The tensor, [batch, channels, height, width].
    """
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def per_dimension(values: list[int], image: Tensor) -> list[int]:
    """Return one value for each spatial dimension of an image.

    Args:
        values: The strides or paddings; a single value is meant for all dimensions.
        image: The image, [batch, channels, *sizes].
    """
    return list(values) * (image.dim() - 2) if len(values) == 1 else list(values)
