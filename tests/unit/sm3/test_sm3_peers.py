"""Other implementations of SM3: equal where they are right, and where they are wrong, how.

Each peer is optional: torch-SM3 0.1.0, pytorch_optimizer 4.1.0 and optax 0.2.8 were the versions compared.
"""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from torch import nn

from sm3 import SM3

SHAPES = [(6,), (4, 5), (3, 4, 2)]


def gradients(shape, count=6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def trained(make, shape, grads, dtype=torch.float32) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    param = nn.Parameter(torch.zeros(shape, dtype=dtype))
    optimizer = make([param])
    for grad in grads:
        param.grad = grad.clone() if grad.is_sparse else grad.to(dtype)
        optimizer.step()
    return param, optimizer


def peer(name: str):
    """Return a class of SM3, or skip."""
    module = {"torch-SM3": "SM3", "pytorch_optimizer": "pytorch_optimizer"}[name]
    pytest.importorskip(module)
    return importlib.import_module(module).SM3


PEERS = ["torch-SM3", "pytorch_optimizer"]


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense_float32_equals_the_peer(name, momentum, shape) -> None:
    other, grads = peer(name), gradients(shape)
    found, _ = trained(lambda p: SM3(p, lr=0.1, momentum=momentum), shape, grads)
    expected, _ = trained(lambda p: other(p, lr=0.1, momentum=momentum), shape, grads)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense_float32_equals_optax(momentum, shape) -> None:
    """`optax.scale_by_sm3`; its `b1` weighs the past of the preconditioned gradient, `b2=1` sums."""
    optax = pytest.importorskip("optax")
    jax = pytest.importorskip("jax")
    rule = optax.scale_by_sm3(b1=momentum, b2=1.0, eps=1e-30)
    weights = jax.numpy.zeros(shape)
    state = rule.init(weights)
    grads = gradients(shape)
    for grad in grads:
        update, state = rule.update(jax.numpy.asarray(grad.numpy()), state)
        weights = weights - 0.1 * update
    found, _ = trained(lambda p: SM3(p, lr=0.1, momentum=momentum), shape, grads)
    np.testing.assert_allclose(found.detach().numpy(), np.asarray(weights), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PEERS)
def test_their_beta_never_decays_and_ours_does(name) -> None:
    other = peer(name)
    grads = [torch.full((2, 2), 10.0), *[torch.full((2, 2), 0.1)] * 200]
    theirs, _ = trained(lambda p: other(p, lr=1.0, beta=0.9), (2, 2), grads)
    ours, _ = trained(lambda p: SM3(p, lr=1.0, beta=0.9), (2, 2), grads)
    last_of = {}
    for label, make in (("theirs", other), ("ours", SM3)):
        longer, _ = trained(lambda p, make=make: make(p, lr=1.0, beta=0.9), (2, 2), [*grads, grads[-1]])
        last_of[label] = (longer - (theirs if label == "theirs" else ours)).abs().max().item()
    assert last_of["ours"] == pytest.approx(1.0, rel=1e-3)
    assert last_of["theirs"] < 0.1


@pytest.mark.parametrize("name", PEERS)
def test_their_float16_gives_nan_at_a_zero_gradient(name) -> None:
    other = peer(name)
    theirs, _ = trained(lambda p: other(p, lr=0.1), (2, 2), [torch.eye(2)], torch.float16)
    ours, _ = trained(lambda p: SM3(p, lr=0.1), (2, 2), [torch.eye(2)], torch.float16)
    assert theirs.isnan().any()
    assert not ours.isnan().any()


def test_pytorch_optimizer_keeps_a_momentum_buffer_that_it_does_not_use() -> None:
    other = peer("pytorch_optimizer")
    sizes = {}
    for label, make in (("theirs", other), ("ours", SM3)):
        param, optimizer = trained(lambda p, make=make: make(p), (64, 32), gradients((64, 32), 1))
        tensors = [value for value in optimizer.state[param].values() if isinstance(value, torch.Tensor)]
        sizes[label] = sum(tensor.numel() for tensor in tensors)
    assert sizes == {"theirs": 64 * 32 + 64 + 32, "ours": 64 + 32}


@pytest.mark.parametrize("name", PEERS)
def test_their_sparse_step_forgets_absent_rows(name) -> None:
    other = peer(name)
    grads = [
        torch.sparse_coo_tensor([[row, row], [0, 1]], [size, size], (4, 2), check_invariants=True)
        for row, size in ((1, 3.0), (2, 1.0), (1, 1.0))
    ]
    ours, _ = trained(lambda p: SM3(p, lr=1.0), (4, 2), grads)
    dense, _ = trained(lambda p: SM3(p, lr=1.0), (4, 2), [grad.to_dense() for grad in grads])
    theirs, _ = trained(lambda p: other(p, lr=1.0), (4, 2), grads)
    torch.testing.assert_close(ours, dense)
    assert ours[1, 0].item() == pytest.approx(-1 - 1 / 10**0.5)
    assert theirs[1, 0].item() < -1.5
