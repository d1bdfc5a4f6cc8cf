"""Momentum in bfloat16 and int8: their size, and their error against float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sm3 import SM3
from sm3.kernels import tiles
from sm3.kernels.momentum import scale_shape

SHAPES = [(), (5,), (700,), (3, 300), (40, 7, 3, 3), (2, 1000), (512, 3), (3, 4, 513)]


def run(shape, steps=30, **options) -> tuple[torch.Tensor, SM3]:
    generator = torch.Generator().manual_seed(0)
    param = nn.Parameter(torch.zeros(shape))
    optimizer = SM3([param], lr=1.0, **{"momentum": 0.9, **options})
    for _ in range(steps):
        param.grad = torch.randn(shape, generator=generator)
        optimizer.step()
    return param, optimizer


def average(optimizer: SM3, param: torch.Tensor) -> torch.Tensor:
    """The momentum in float32, decoded by the definition of its format."""
    state = optimizer.state[param]
    if "momentum_scale" not in state:
        return state["momentum_buffer"].float()
    rows = state["momentum_buffer"].float().reshape(max(1, torch.Size(scale_shape(param.shape)[:-1]).numel()), -1)
    scales = state["momentum_scale"].reshape(rows.shape[0], -1).repeat_interleave(256, 1)[:, : rows.shape[1]]
    return (rows * scales).reshape(param.shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_stays_within_the_bound_of_its_docstring(shape) -> None:
    exact_param, exact = run(shape)
    param, optimizer = run(shape, momentum_dtype=torch.int8)
    error = (average(optimizer, param) - average(exact, exact_param)).abs().max()
    assert error <= 1 / (254 * (1 - 0.9))
    typical = average(exact, exact_param).abs().max()
    assert error <= 0.1 * typical


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bfloat16_stays_within_the_bound_of_its_docstring(shape) -> None:
    exact_param, exact = run(shape)
    param, optimizer = run(shape, momentum_dtype="bfloat16")
    error = (average(optimizer, param) - average(exact, exact_param)).abs().max()
    assert 0 < error <= 2**-9 / (1 - 0.9) or torch.Size(shape).numel() < 10


@pytest.mark.parametrize(("dtype", "most"), [("float32", 4.0), ("bfloat16", 2.0), ("int8", 1.0 + 4 / 256)])
def test_bytes_per_entry(dtype, most) -> None:
    param, optimizer = run((64, 1024), steps=1, momentum_dtype=dtype)
    kept = sum(value.nbytes for key, value in optimizer.state[param].items() if key.startswith("momentum"))
    assert kept == most * param.numel()


def test_no_buffer_without_momentum_and_one_when_it_is_turned_on() -> None:
    param = nn.Parameter(torch.zeros(3, 3))
    param.grad = torch.ones(3, 3)
    optimizer = SM3([param])
    optimizer.step()
    assert set(optimizer.state[param]) == {"accumulator_0", "accumulator_1"}
    optimizer.param_groups[0]["momentum"] = 0.9
    optimizer.step()
    assert "momentum_buffer" in optimizer.state[param]


def test_the_buffer_is_updated_in_place() -> None:
    param, optimizer = run((4, 4), steps=1)
    pointer = optimizer.state[param]["momentum_buffer"].data_ptr()
    optimizer.step()
    assert optimizer.state[param]["momentum_buffer"].data_ptr() == pointer


@pytest.mark.parametrize("shape", [(258, 255), (370, 300), (2, 90_000), (1200, 7, 3, 3), (5, 3, 9001)], ids=str)
def test_int8_does_not_depend_on_the_cut(shape, monkeypatch) -> None:
    whole, _ = run(shape, steps=4, momentum_dtype="int8")
    monkeypatch.setattr(tiles, "TILE", 1 << 16)  # the least that keeps blocks whole
    cut, _ = run(shape, steps=4, momentum_dtype="int8")
    assert torch.equal(whole, cut)
    monkeypatch.setattr(tiles, "VECTORS", 1)
    longest_first, _ = run(shape, steps=4, momentum_dtype="int8")
    assert torch.equal(whole, longest_first)


def test_int8_takes_no_index_sets() -> None:
    from sm3 import IndexSets

    with pytest.raises(ValueError, match="not int8"):
        run((4,), cover=IndexSets([range(4)], (4,)), momentum_dtype="int8")


def test_int8_keeps_a_zero_momentum_zero() -> None:
    param = nn.Parameter(torch.ones(3, 3))
    optimizer = SM3([param], momentum=0.9, momentum_dtype="int8")
    param.grad = torch.zeros(3, 3)
    optimizer.step()
    assert torch.equal(param.detach(), torch.ones(3, 3))
