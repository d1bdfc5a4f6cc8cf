"""The paper's statements about SM3 as properties of the optimizer, for any gradients and covers.

Propositions 1 to 3 are those of the analysis in Anil et al., NeurIPS 2019 (Claim 2, Propositions 1 and 3).
"""

from __future__ import annotations

import itertools
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sm3 import SM3, Blocks, Cover, IndexSets, Singleton, Slices, Union, Whole, reference

SHAPES = st.lists(st.integers(1, 5), max_size=4).map(tuple)
FEW = settings(max_examples=60)


@st.composite
def gradient_sequences(draw, shapes=SHAPES) -> tuple[tuple[int, ...], list[torch.Tensor]]:
    """Gradients of widely different size, many entries zero."""
    shape = draw(shapes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = 10.0 ** draw(st.integers(-6, 6))
    kept = draw(st.floats(0.2, 1.0))
    count = draw(st.integers(1, 6))
    draws = [torch.randn(shape, generator=generator) * scale for _ in range(count)]
    return shape, [g * (torch.rand(shape, generator=generator) < kept) for g in draws]


@st.composite
def covers(draw, shape: tuple[int, ...]) -> Cover:
    """Every kind of cover, collections of random overlapping sets among them."""
    kind = draw(st.sampled_from(["slices", "singleton", "whole", "blocks", "union", "sets"]))
    lengths = tuple(draw(st.lists(st.sampled_from([-1, 1, 2, 3]), min_size=1, max_size=4)))
    if kind == "sets":
        numel = math.prod(shape)
        sets = draw(st.lists(st.sets(st.integers(0, numel - 1), min_size=1), max_size=4))
        rest = set(range(numel)) - set().union(*sets)
        return IndexSets([sorted(s) for s in [*sets, *([rest] if rest else [])]], shape)
    named = {"slices": Slices(), "singleton": Singleton(), "whole": Whole(), "blocks": Blocks(lengths)}
    return named.get(kind) or Union((Slices(), Blocks(lengths)))


def sets_of(cover: Cover, shape: tuple[int, ...]) -> list[list[int]]:
    return [members.tolist() for members in cover.index_sets(shape)]


def trained(grads: list[torch.Tensor], optimizer_class=SM3, **options):
    param = nn.Parameter(torch.zeros_like(grads[0]))
    optimizer = optimizer_class([param], **options)
    history = []
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
        history.append([v.clone() for k, v in optimizer.state[param].items() if k.startswith("accumulator")])
    return param.detach(), history


@FEW
@given(st.data())
def test_bounds_chain_and_monotone(data) -> None:
    """Sum of g^2 <= nu of SM3-II <= nu of SM3-I, and both grow with t (in the float64 reference)."""
    shape, grads = data.draw(gradient_sequences())
    sets = sets_of(data.draw(covers(shape)), shape)
    one = reference.run("I", torch.zeros(shape), grads, sets, 0.1).second_moments
    two = reference.run("II", torch.zeros(shape), grads, sets, 0.1).second_moments
    squares = torch.zeros(shape, dtype=torch.float64)
    for t, grad in enumerate(grads):
        squares += grad.double() ** 2
        assert (squares <= two[t] * (1 + 1e-12)).all()
        assert (two[t] <= one[t] * (1 + 1e-12)).all()
        assert t == 0 or ((two[t] >= two[t - 1]).all() and (one[t] >= one[t - 1]).all())


@FEW
@given(st.data(), st.sampled_from(["I", "II"]), st.sampled_from([0.0, 0.7]), st.sampled_from([0.0, 0.9]))
def test_optimizer_equals_the_reference(data, variant, momentum, beta) -> None:
    shape, grads = data.draw(gradient_sequences())
    cover = data.draw(covers(shape))
    options = {"momentum": momentum, "beta": beta}
    found, history = trained(grads, lr=0.1, variant=variant, cover=cover, **options)
    expected = reference.run(variant, torch.zeros(shape), grads, sets_of(cover, shape), 0.1, **options)
    torch.testing.assert_close(found.double(), expected.weights, rtol=1e-4, atol=1e-6)
    kept = torch.cat([accumulator.flatten() for accumulator in history[-1]]).double()
    torch.testing.assert_close(kept, torch.tensor(expected.accumulators[-1], dtype=torch.float64), rtol=1e-5, atol=0)


@FEW
@given(st.data(), st.sampled_from(["I", "II"]))
def test_accumulators_never_fall(data, variant) -> None:
    shape, grads = data.draw(gradient_sequences())
    _, history = trained(grads, variant=variant, cover=data.draw(covers(shape)))
    for before, after in itertools.pairwise(history):
        assert all((b <= a).all() for b, a in zip(before, after, strict=True))


@FEW
@given(gradient_sequences(), st.sampled_from(["I", "II"]))
def test_the_singleton_cover_is_adagrad(drawn, variant) -> None:
    _, grads = drawn
    found, _ = trained(grads, lr=0.1, variant=variant, cover="singleton")
    adagrad, _ = trained(grads, torch.optim.Adagrad, lr=0.1, eps=1e-30, foreach=False)
    torch.testing.assert_close(found, adagrad, rtol=1e-5, atol=1e-7)


@FEW
@given(st.data(), st.sampled_from(["I", "II"]))
def test_the_first_step_has_size_lr_or_less_and_the_sign_of_descent(data, variant) -> None:
    shape, grads = data.draw(gradient_sequences())
    found, _ = trained(grads[:1], lr=0.25, variant=variant, cover=data.draw(covers(shape)))
    assert (found.abs() <= 0.25 * (1 + 1e-6)).all()
    assert torch.equal(found.sign(), -grads[0].sign())


@FEW
@given(st.data())
def test_the_first_step_of_variant_two_has_size_lr(data) -> None:
    shape, grads = data.draw(gradient_sequences())
    found, _ = trained(grads[:1], lr=0.25, cover=data.draw(covers(shape)))
    torch.testing.assert_close(found, -0.25 * grads[0].sign(), rtol=1e-6, atol=0)


@FEW
@given(st.data(), st.sampled_from(["I", "II"]), st.integers(0, 2**31))
def test_regret_stays_below_the_bound(data, variant, seed) -> None:
    """Propositions 1 and 3: the regret on convex losses l_t(w) = |<a_t, w> - b_t| against any w*.

    Bound: D^2 / (2 eta) + eta, times the sum over i of sqrt(nu_T(i)), where D bounds |w_t - w*| in the
    maximum norm along the run. It is computed from the run itself, so it holds without projection.
    """
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple))
    cover = data.draw(covers(shape))
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(shape, generator=generator, dtype=torch.float64)
    param = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = SM3([param], lr=0.5, variant=variant, cover=cover)
    regret, distance, grads = 0.0, 0.0, []
    for _ in range(15):
        row = torch.randn(shape, generator=generator, dtype=torch.float64)
        noise = torch.randn((), generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        loss = ((row * (param - target)).sum() - noise).abs()
        loss.backward()
        regret += loss.item() - noise.abs().item()
        distance = max(distance, (param.detach() - target).abs().max().item())
        grads.append(param.grad.clone())
        optimizer.step()
    nu = reference.run(variant, torch.zeros(shape), grads, sets_of(cover, shape), 0.5).second_moments[-1]
    bound = (distance**2 / (2 * 0.5) + 0.5) * nu.sqrt().sum().item()
    assert regret <= bound * (1 + 1e-4)


@FEW
@given(st.data())
def test_nu_of_variant_two_is_below_the_computable_bound(data) -> None:
    """Proposition 3's last step: nu_T(i) of both variants <= min over sets with i of the sum of max g^2."""
    shape, grads = data.draw(gradient_sequences())
    sets = sets_of(data.draw(covers(shape)), shape)
    squares = torch.stack([grad.double().flatten() ** 2 for grad in grads])
    sums = [squares[:, members].amax(1).sum().item() for members in sets]
    limit = [min(sums[r] for r, members in enumerate(sets) if i in members) for i in range(math.prod(shape))]
    for variant in ("I", "II"):
        nu = reference.run(variant, torch.zeros(shape), grads, sets, 0.1).second_moments[-1].flatten()
        assert (nu <= torch.tensor(limit, dtype=torch.float64) * (1 + 1e-12)).all()
