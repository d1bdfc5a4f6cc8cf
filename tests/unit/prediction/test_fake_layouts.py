"""Tensors that are dense but not contiguous: autograd still adds gradients in place, layer norm copies them."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from memprof.devices.catalog import find_device
from memprof.devices.resolve import target_of
from memprof.prediction.cuda.kernels.norms import norm_scratch
from memprof.prediction.fake.accumulation import is_dense

aten = torch.ops.aten
TARGET = target_of(find_device("rtx-3060"), torch_version="2.6.0")


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 3, 1), (2, 1, 4)])
def test_any_order_of_dimensions_is_dense(order: tuple[int, ...], shape: tuple[int, ...]) -> None:
    assert is_dense(torch.empty(shape).permute(order))


@pytest.mark.parametrize(
    "tensor",
    [torch.empty(4, 6)[:, :3], torch.empty(4, 6)[:, ::2], torch.empty(1).expand(3), torch.empty(2, 3, 4)[:, 1:]],
)
def test_holes_and_overlaps_are_not(tensor: torch.Tensor) -> None:
    assert not is_dense(tensor)
    assert torch.empty_like(tensor).stride() != tensor.stride()  # PyTorch keeps the strides of dense tensors only


def test_layer_norm_copies_what_is_not_contiguous() -> None:
    scratch = norm_scratch(TARGET)
    plain = torch.empty(2, 5, 5, 3)
    turned = torch.empty(2, 3, 5, 5).permute(0, 2, 3, 1)
    size = plain.numel() * 4
    forward, backward = scratch[aten.native_layer_norm.default], scratch[aten.native_layer_norm_backward.default]
    assert forward((plain, [3]), {}) == [None]
    assert forward((turned, [3]), {}) == [size, None]

    def gradient(gradient: torch.Tensor, tensor: torch.Tensor) -> object:
        return backward((gradient, tensor, [3], None, None, None, None, [True, True, True]), {})

    assert gradient(plain, plain) == [None]
    assert gradient(plain, turned) == [size, None]
    assert gradient(turned, plain) == [None, size]
