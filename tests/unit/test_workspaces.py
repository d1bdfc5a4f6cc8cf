"""What kernels take for themselves where no recording can say: convolutions, copies for cuBLAS, a bias by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from memprof.simulation.target import Target
from memprof.simulation.workspaces_reductions import reduction_buffers, threads_per_multiprocessor
from memprof.tracing.events import Allocation
from tests.unit.test_cuda_semantics import AMPERE, TURING, cuda

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


def test_a_convolution_takes_between_nothing_and_copies_of_its_operands() -> None:
    blocks = convolved(A100)
    copies = 4 * (4 * 16 * 20 * 20 + 16 * 16 * 3 * 3 + 4 * 16 * 10 * 10)
    assert [block.range for block in blocks] == [(0, copies, SOURCE)] * 3  # forward, and for each gradient
    assert {block.size for block in blocks} == {1}


def test_where_nothing_is_assumed_of_a_convolution() -> None:
    channels_last = lambda x: x.to(memory_format=torch.channels_last)  # noqa: E731
    assert convolved(A100, channels_last) == []
    assert convolved(TURING) == []
    assert convolved(A100, groups=16) == []
    assert len(convolved(A100, lambda x: channels_last(x), groups=16)) == 3  # goes to cuDNN, which has no such kernel


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
