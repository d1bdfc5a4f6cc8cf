"""SM3 against the paper's pseudocode, and what its state and its options are."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from sm3 import SM3, reference
from sm3.covers import NAMED, Blocks, Cover, Slices, Union
from tests import children

COVERS: dict[str, Cover] = {
    **NAMED,
    "blocks": Blocks((2, 3)),
    "column blocks": Blocks((-1, 2)),
    "overlapping": Union((Slices(), Blocks((2, 2, 1)))),
}
SHAPES = [(), (7,), (5, 4), (1, 6), (3, 4, 5), (2, 3, 2, 2), (2, 1, 3, 2, 2)]
OPTIONS = [
    {},
    {"momentum": 0.9},
    {"beta": 0.9},
    {"weight_decay": 0.1},
    {"beta": 0.5, "momentum": 0.5, "weight_decay": 0.1},
]


def gradients(shape: tuple[int, ...], count: int = 4) -> list[torch.Tensor]:
    """Changing gradients, a third of the entries zero."""
    generator = torch.Generator().manual_seed(sum(shape) + count)
    draw = [torch.randn(shape, generator=generator) for _ in range(count)]
    return [g * (torch.rand(shape, generator=generator) > 0.3) for g in draw]


def train(param: nn.Parameter, optimizer: torch.optim.Optimizer, grads: list[torch.Tensor]) -> None:
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()


@pytest.mark.parametrize("kernel", ["auto", "chunked"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("variant", ["I", "II"])
@pytest.mark.parametrize("cover", COVERS.values(), ids=COVERS.keys())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_pseudocode(shape, cover, variant, options, kernel) -> None:
    param = nn.Parameter(torch.linspace(-1, 1, torch.Size(shape).numel()).view(shape))
    start, grads = param.detach().clone(), gradients(shape)
    train(param, SM3([param], lr=0.3, variant=variant, cover=cover, kernel=kernel, **options), grads)
    sets = [members.tolist() for members in cover.index_sets(shape)]
    expected = reference.run(variant, start, grads, sets, 0.3, **options).weights
    torch.testing.assert_close(param.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4), (1, 1), (4, 1, 2, 3)])
def test_state_is_the_sum_of_the_dimensions_and_nothing_else(shape) -> None:
    param = nn.Parameter(torch.randn(shape))
    optimizer = SM3([param], kernel="chunked")
    assert not optimizer.state
    assert optimizer.kernel == "none"
    train(param, optimizer, gradients(shape, 1))
    state = optimizer.state[param]
    assert [tuple(value.shape) for value in state.values()] == [(n,) for n in shape]
    assert sum(value.untyped_storage().nbytes() for value in state.values()) == 4 * sum(shape)
    assert optimizer.kernel == "chunked"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_accumulators_are_float32_whatever_the_parameter(dtype) -> None:
    param = nn.Parameter(torch.ones(3, 4, dtype=dtype))
    optimizer = SM3([param], lr=0.5)
    grad = torch.zeros(3, 4, dtype=dtype)
    grad[0, 0] = 2.0
    train(param, optimizer, [grad])
    assert {value.dtype for value in optimizer.state[param].values()} == {torch.float32}
    assert torch.equal(param.detach(), 1 - 0.5 * (grad > 0).to(dtype))


def test_accumulators_do_not_saturate_in_bfloat16() -> None:
    param = nn.Parameter(torch.zeros(2, 2, dtype=torch.bfloat16))
    optimizer = SM3([param])
    train(param, optimizer, [torch.ones(2, 2, dtype=torch.bfloat16)] * 400)
    assert optimizer.state[param]["accumulator_0"].tolist() == [400.0, 400.0]


def test_beta_is_a_true_average_that_decays() -> None:
    param = nn.Parameter(torch.zeros(2, 3))
    optimizer = SM3([param], beta=0.9)
    train(param, optimizer, [torch.full((2, 3), 10.0), *[torch.full((2, 3), 0.1)] * 300])
    torch.testing.assert_close(optimizer.state[param]["accumulator_0"], torch.full((2,), 0.01))


def test_tiny_gradients_take_a_full_first_step() -> None:
    param = nn.Parameter(torch.zeros(2, 2))
    train(param, SM3([param], lr=1.0), [torch.tensor([[1e-5, -1e-18], [2e-19, 0.0]])])
    torch.testing.assert_close(param.detach(), torch.tensor([[-1.0, 1.0], [-1.0, 0.0]]))


def test_maximize_mirrors_minimize() -> None:
    low, high = nn.Parameter(torch.zeros(3, 3)), nn.Parameter(torch.zeros(3, 3))
    train(low, SM3([low], momentum=0.5), gradients((3, 3)))
    train(high, SM3([high], momentum=0.5, maximize=True), gradients((3, 3)))
    assert torch.equal(low.detach(), -high.detach())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_lr_as_a_tensor_equals_lr_as_a_float(momentum) -> None:
    params = [nn.Parameter(torch.ones(4, 3)) for _ in range(2)]
    for param, lr in zip(params, (0.125, torch.tensor(0.125)), strict=True):
        train(param, SM3([param], lr=lr, momentum=momentum), gradients((4, 3)))
    assert torch.equal(*params)


def test_each_group_has_its_own_options() -> None:
    slow, fast = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2))
    optimizer = SM3([{"params": [slow]}, {"params": [fast], "lr": 1.0, "cover": "whole"}], lr=0.5)
    for param in (slow, fast):
        param.grad = torch.ones(2, 2)
    optimizer.step()
    assert (slow[0, 0].item(), fast[0, 0].item()) == (-0.5, -1.0)
    assert len(optimizer.state[fast]) == 1


def test_closure_and_missing_gradients() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = SM3([used, unused], lr=1.0)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (used**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2.0
    assert used.tolist() == [0.0, 0.0]
    assert unused not in optimizer.state


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lr": -1.0}, "lr must be"),
        ({"lr": torch.ones(2)}, "one element"),
        ({"lr": torch.tensor(-0.1)}, "lr must be"),
        ({"momentum": 1.0}, "momentum must be"),
        ({"beta": -0.1}, "beta must be"),
        ({"eps": 1e-30}, "eps must be"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"variant": "III"}, "variant must be"),
        ({"momentum_dtype": torch.float16}, "momentum_dtype must be"),
        ({"kernel": "cuda"}, "kernel must be"),
        ({"cover": "columns"}, "unknown cover 'columns'"),
    ],
)
def test_a_wrong_option_is_refused_with_a_sentence(options, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        SM3([nn.Parameter(torch.zeros(2, 2))], **options)


def test_complex_is_refused_with_a_sentence() -> None:
    with pytest.raises(TypeError, match="view_as_real"):
        SM3([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])


def test_importing_sm3_imports_nothing_of_memprof() -> None:
    code = "import sys, sm3; print([m for m in sys.modules if m.startswith('memprof')])"
    run = children.run([sys.executable, "-c", code])
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_float64_parameters_keep_their_digits(momentum) -> None:
    """Accumulators and steps are float32, the weights are not rounded to it."""
    param = nn.Parameter(torch.full((3, 4), 1 / 3, dtype=torch.float64))
    optimizer = SM3([param], lr=2.0**-10, momentum=momentum)
    param.grad = torch.zeros(3, 4, dtype=torch.float64)
    param.grad[0] = 1.0
    optimizer.step()
    assert (param[1:] == 1 / 3).all()
    expected = 1 / 3 - 2.0**-10 * (1 - momentum)
    torch.testing.assert_close(param[0].detach(), torch.full((4,), expected, dtype=torch.float64), rtol=1e-9, atol=0)
