"""The inner loop of the portable kernel: PyTorch's fused Adagrad and ordinary operations, against exact arithmetic."""

from __future__ import annotations

import pytest
import torch

from sm3.kernels import inner
from sm3.kernels.scratch import Scratch

LENGTHS = [1, 2, 7, 15, 16, 17, 31, 33, 64, 100_003]
needs_fused = pytest.mark.skipif(inner.rounding() == "unknown", reason="PyTorch's fused Adagrad rounds otherwise here")


def numbers(length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    target, grad = (torch.randn(length, generator=generator) for _ in range(2))
    return target, grad, torch.rand(length, generator=generator) + 2.0**-20


@pytest.fixture(params=["fused", "ordinary"])
def way(request, monkeypatch) -> str:
    if request.param == "ordinary":
        monkeypatch.setattr(inner, "rounding", lambda: "unknown")
    elif inner.rounding() == "unknown":
        pytest.skip("PyTorch's fused Adagrad rounds otherwise here")
    return request.param


@pytest.mark.parametrize("length", LENGTHS)
def test_each_way_is_within_a_rounding_of_the_formula(length, way) -> None:
    target, grad, nu = numbers(length)
    wide = grad.double().square() + nu.double()
    expected = target.double() - 0.3 * grad.double() / wide.sqrt()
    inner.sum_and_descend(target, grad, nu, 0.3, Scratch())
    torch.testing.assert_close(nu.double(), wide, rtol=2.0**-23, atol=0)
    torch.testing.assert_close(target.double(), expected, rtol=2.0**-23, atol=2.0**-23)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_sum_and_a_descent_apart_have_the_bits_of_both_at_once(length, way) -> None:
    once, grad, nu = numbers(length)
    twice, total, scratch = once.clone(), nu.clone(), Scratch()
    inner.sum_and_descend(once, grad, nu, 0.3, scratch)
    inner.add_square(total, grad, scratch)
    assert torch.equal(total, nu)
    inner.descend(twice, grad, total, 0.3, 0.0, scratch)
    if way == "fused":
        assert torch.equal(once, twice)
    else:
        torch.testing.assert_close(once, twice, rtol=0, atol=2.0**-22)


@needs_fused
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.999, 0.999999])
def test_a_descent_leaves_the_sum_out_whatever_beta(beta) -> None:
    """The gradient counts in the step but not in the sum, though the fused Adagrad adds its square."""
    target, grad, _ = numbers(1000)
    nu = grad.square() * (1 - beta)
    root = nu.double().sqrt().float()
    expected = target - (grad * 0.25) / root
    inner.descend(target, grad, nu, 0.25, beta, Scratch())
    assert torch.equal(target, expected)


@needs_fused
@pytest.mark.parametrize("length", LENGTHS)
def test_where_an_entry_lies_changes_no_bit(length) -> None:
    """Its vector part and its scalar part must round alike, or the cut into tiles would show."""
    target, grad, nu = numbers(length)
    found = [tensor.clone() for tensor in (target, grad, nu)]
    inner.sum_and_descend(*found, 0.3, Scratch())
    for start in range(0, min(length, 200), 5):
        part = [tensor[start : start + 5].clone() for tensor in (target, grad, nu)]
        inner.sum_and_descend(*part, 0.3, Scratch())
        assert torch.equal(part[0], found[0][start : start + 5])
        assert torch.equal(part[2], found[2][start : start + 5])


def test_a_fused_adagrad_that_rounds_otherwise_is_not_used(monkeypatch) -> None:
    def inexact(params, grads, sums, steps, *, lr, **_) -> None:
        sums[0].add_(grads[0] ** 2).mul_(1 + 2.0**-20)

    inner.rounding.cache_clear()
    monkeypatch.setattr(torch, "_fused_adagrad_", inexact)
    try:
        assert inner.rounding() == "unknown"
        monkeypatch.delattr(torch, "_fused_adagrad_")
        inner.rounding.cache_clear()
        assert inner.rounding() == "unknown"
    finally:
        inner.rounding.cache_clear()
