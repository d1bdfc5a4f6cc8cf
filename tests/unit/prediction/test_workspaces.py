"""What kernels take for themselves where no recording can say: convolutions, copies for cuBLAS, a bias by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from memprof.devices.target import Target
from memprof.prediction.cuda.kernels.convolution import tensor_core_bytes
from memprof.prediction.cuda.kernels.reductions import reduction_buffers, threads_per_multiprocessor
from memprof.trace.events import Allocation
from tests.unit.prediction.test_cuda_semantics import AMPERE, TURING, cuda

A100 = replace(AMPERE, sm_count=108)
SOURCE = "cuDNN convolution workspaces"


def convolved(
    target: Target, prepare: Callable[[Tensor], Tensor] = lambda x: x, groups: int = 1, width: int = 16
) -> list[Allocation]:
    """Return the blocks of unknown size that a convolution takes, forward and backward."""
    with cuda(target) as mode:
        image = prepare(torch.empty(4, 16, 20, 20)).requires_grad_()
        weight = prepare(torch.empty(width, 16 // groups, 3, 3)).requires_grad_()
        output = F.conv2d(image, weight, padding=1, stride=2, groups=groups)
        output.backward(torch.empty_like(output))
    return [entry for entry in mode.log.entries(0) if isinstance(entry, Allocation) and entry.range is not None]


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last)


def test_a_convolution_takes_between_nothing_and_the_tensor_cores_plan() -> None:
    blocks = convolved(A100)
    copies = 4 * (4 * 16 * 20 * 20 + 16 * 16 * 3 * 3 + 4 * 16 * 10 * 10)
    wide = 4 * (4 * 128 * 20 * 20)  # the input's gradient in tiles of 128 channels
    assert [block.range for block in blocks] == [(0, size, SOURCE) for size in (copies, copies + wide, copies)]
    assert {block.size for block in blocks} == {1}


def test_the_tensor_cores_plan_as_cudnn_has_it() -> None:
    """Workspaces that cuDNN 9.8 gave for an RTX 3060, to within a per cent (the kernels' own tables are a few KiB)."""
    stem = torch.empty(200, 3, 86, 86, device="meta"), torch.empty(32, 3, 3, 3, device="meta"), (200, 32, 43, 43)
    expand = torch.empty(300, 16, 43, 43, device="meta"), torch.empty(48, 16, 1, 1, device="meta"), (300, 48, 43, 43)
    depthwise = torch.empty(200, 96, 21, 21, device="meta"), torch.empty(96, 1, 7, 7, device="meta"), (200, 96, 21, 21)
    assert tensor_core_bytes("forward", *stem, groups=1) == pytest.approx(71_006_224, rel=0.01)
    assert tensor_core_bytes("input gradient", *expand, groups=1) == pytest.approx(1.354 * 300 * 2**20, rel=0.01)
    assert tensor_core_bytes("forward", *depthwise, groups=96) == pytest.approx(258.69 * 2**20, rel=0.01)


def test_channels_last_in_single_precision_lays_out_the_operands_that_it_reads() -> None:
    image, weight, output = (4 * count for count in (4 * 16 * 20 * 20, 16 * 16 * 3 * 3, 4 * 16 * 10 * 10))
    sizes = [block.size for block in convolved(A100, channels_last)]
    assert sizes == [image + weight, output + weight, image + output]


@pytest.mark.parametrize(
    ("version", "capability", "taken"),
    [((2, 6), (8, 6), True), ((2, 6), (8, 9), False), ((2, 8), (8, 6), False), ((2, 3), (8, 6), False)],
)
def test_depthwise_forward_in_channels_last(version: tuple[int, int], capability: tuple[int, int], taken: bool) -> None:
    blocks = convolved(replace(A100, torch_version=version, capability=capability), channels_last, groups=16)
    padded = 4 * (4 * 64 * 20 * 20 + 4 * 64 * 10 * 10 + 64 * 4 * 3 * 3)
    assert [block.size for block in blocks] == [padded if taken else 1, 1, 1]
    assert {block.range.high for block in blocks if block.range} == {padded}


def test_where_nothing_is_assumed_of_a_convolution() -> None:
    assert convolved(A100, lambda x: channels_last(x.bfloat16())) == []
    assert convolved(TURING) == []
    assert convolved(A100, groups=16) == []  # PyTorch's own kernel


def test_copies_into_the_inputs_layout() -> None:
    """`cudnn_convolution_forward` and `_backward` in ConvShared.cpp: the weight's and the output gradient's."""
    taken = [entry.size for entry in allocations(channels_last, lambda x: x, torch.contiguous_format)]
    weight, gradient = 4 * 16 * 16 * 3 * 3, 4 * 4 * 16 * 10 * 10
    assert taken.count(weight) == 4  # forward, for the input's gradient; the weight's gradient, and laid out as it is
    assert taken.count(gradient) == 2  # the output, and the copy of its gradient
    taken = [entry.size for entry in allocations(channels_last, channels_last, torch.channels_last)]
    assert (taken.count(weight), taken.count(gradient)) == (1, 1)


def allocations(
    image_layout: Callable[[Tensor], Tensor], weight_layout: Callable[[Tensor], Tensor], gradient: torch.memory_format
) -> list[Allocation]:
    """Return what a convolution allocates on an A100 from the forward pass on."""
    with cuda(replace(A100, torch_version=(2, 6))) as mode:
        image = image_layout(torch.empty(4, 16, 20, 20)).requires_grad_()
        weight = weight_layout(torch.empty(16, 16, 3, 3)).requires_grad_()
        incoming = torch.empty(4, 16, 10, 10).to(memory_format=gradient)
        before = len(mode.log.entries(0))
        F.conv2d(image, weight, padding=1, stride=2).backward(incoming)
    return [entry for entry in mode.log.entries(0)[before:] if isinstance(entry, Allocation)]


def test_the_gradient_of_a_bias_by_hand() -> None:
    """8,192 rows of 3,072: 24 blocks across, 32 x 4 threads of four columns, 72 blocks down on an A100."""
    gradient = torch.empty(8192, 3072, device="meta")
    assert reduction_buffers(A100, gradient, [0]) == [4 * 3072 * 72 * 32 * 4, 4 * 24]
    assert reduction_buffers(A100, gradient, [1]) == []
    assert reduction_buffers(A100, gradient[:64], [0]) == []
    assert reduction_buffers(A100, gradient[:0], [0]) == []


def test_a_sum_does_not_mind_the_order_of_its_dimensions() -> None:
    tensor = torch.empty(8, 512, 768, device="meta")
    assert reduction_buffers(A100, tensor, [0, 1]) == reduction_buffers(A100, tensor.flatten(0, 1), [0]) != []
    assert reduction_buffers(A100, tensor, [-2, 0]) == reduction_buffers(A100, tensor, [0, 1])
    turned = tensor.permute(2, 0, 1)
    assert reduction_buffers(A100, turned, [1, 2]) == reduction_buffers(A100, tensor, [0, 1])
    assert reduction_buffers(A100, tensor, None) == reduction_buffers(A100, tensor.flatten(), None)


@pytest.mark.parametrize(("capability", "threads"), [((7, 5), 1024), ((8, 0), 2048), ((8, 9), 1536), ((9, 0), 2048)])
def test_threads(capability: tuple[int, int], threads: int) -> None:
    assert threads_per_multiprocessor(capability) == threads


def test_an_expanded_matrix_is_copied_for_cublas() -> None:
    def taken(matrix: Callable[[], Tensor]) -> list[int]:
        with cuda(replace(A100, torch_version=(2, 15))) as mode:
            left, right = matrix(), torch.empty(64, 64)
            start = len(mode.log.entries(0))
            torch.mm(left, right)
            return [entry.size for entry in mode.log.entries(0)[start:] if isinstance(entry, Allocation)]

    assert taken(lambda: torch.empty(64, 64)) == taken(lambda: torch.empty(64, 64).t()) == [16384, 8519680]
    assert taken(lambda: torch.empty(64, 96)[:, :64]) == [16384, 8519680]
    assert taken(lambda: torch.empty(1, 1).expand(64, 64)) == [16384, 16384, 8519680]
