"""Saving, loading and copying SM3: float32 stays float32 and resuming is not stopping."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from sm3 import SM3, Blocks, IndexSets

OPTIONS = [
    {},
    {"variant": "I"},
    {"momentum": 0.9},
    {"momentum": 0.9, "momentum_dtype": torch.bfloat16},
    {"momentum": 0.9, "momentum_dtype": torch.int8},
    {"beta": 0.9, "cover": {"0.weight": "rows"}},
    {"cover": Blocks((2, 2))},
]


def model(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 300), nn.Linear(300, 2)).to(dtype)


def optimizer_of(net: nn.Module, options) -> SM3:
    return SM3(net.named_parameters(), lr=0.1, **options)


def train(net: nn.Module, optimizer: SM3, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for param in net.parameters():
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()


def saved_and_loaded(net: nn.Module, optimizer: SM3, options) -> tuple[nn.Module, SM3]:
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = model(next(net.parameters()).dtype)
    other.load_state_dict(saved["net"])
    resumed = optimizer_of(other, options)
    resumed.load_state_dict(saved["optimizer"])
    return other, resumed


def deep_copied(net: nn.Module, optimizer: SM3, options) -> tuple[nn.Module, SM3]:
    return copy.deepcopy((net, optimizer))


def pickled(net: nn.Module, optimizer: SM3, options) -> tuple[nn.Module, SM3]:
    return pickle.loads(pickle.dumps((net, optimizer)))


@pytest.mark.parametrize("way", [saved_and_loaded, deep_copied, pickled])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_resuming_is_bit_identical_to_not_stopping(options, dtype, way) -> None:
    net = model(dtype)
    optimizer = optimizer_of(net, options)
    train(net, optimizer, range(3))
    other, resumed = way(net, optimizer, options)
    train(net, optimizer, range(3, 6))
    train(other, resumed, range(3, 6))
    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        for key, value in optimizer.state[ours].items():
            assert value.dtype == resumed.state[theirs][key].dtype
            assert torch.equal(value, resumed.state[theirs][key])


def test_accumulators_stay_float32_for_bfloat16_parameters() -> None:
    net = model(torch.bfloat16)
    optimizer = optimizer_of(net, {})
    train(net, optimizer, range(2))
    optimizer.load_state_dict(optimizer.state_dict())
    dtypes = {value.dtype for state in optimizer.state.values() for value in state.values()}
    assert dtypes == {torch.float32}


def test_a_loaded_state_is_a_copy() -> None:
    first, second = model(torch.float32), model(torch.float32)
    one, two = optimizer_of(first, {}), optimizer_of(second, {})
    train(first, one, range(2))
    two.load_state_dict(one.state_dict())
    kept = copy.deepcopy(one.state_dict()["state"])
    train(second, two, range(2, 4))
    assert torch.equal(one.state_dict()["state"][0]["accumulator_0"], kept[0]["accumulator_0"])


def test_users_hooks_see_the_state_before_and_after() -> None:
    net = model(torch.float32)
    optimizer = optimizer_of(net, {})
    train(net, optimizer, range(1))
    seen = []
    optimizer.register_load_state_dict_pre_hook(lambda _, saved: seen.append(len(saved["state"])))
    optimizer.register_load_state_dict_post_hook(lambda own: seen.append(len(own.state)))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == [4, 4]


def test_another_cover_is_refused() -> None:
    net = model(torch.float32)
    saved = optimizer_of(net, {"cover": "rows"}).state_dict()
    with pytest.raises(ValueError, match="same cover"):
        optimizer_of(net, {}).load_state_dict(saved)


def test_index_sets_are_told_apart_by_their_memberships() -> None:
    param = nn.Parameter(torch.zeros(4))
    saved = SM3([param], cover=IndexSets([[0, 1], [2, 3]], (4,))).state_dict()
    SM3([param], cover=IndexSets([[1, 0], [3, 2]], (4,))).load_state_dict(saved)
    with pytest.raises(ValueError, match="same cover"):
        SM3([param], cover=IndexSets([[0, 2], [1, 3]], (4,))).load_state_dict(saved)


def test_another_shape_is_refused() -> None:
    small, large = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(2, 4))
    first, second = SM3([small]), SM3([large])
    small.grad = torch.ones(2, 3)
    first.step()
    with pytest.raises(ValueError, match="same model"):
        second.load_state_dict(first.state_dict())


def test_the_state_of_another_optimizer_is_refused_by_name() -> None:
    param = nn.Parameter(torch.zeros(2, 3))
    adam = torch.optim.Adam([param])
    param.grad = torch.ones(2, 3)
    adam.step()
    with pytest.raises(ValueError, match=r"another optimizer's state \(step, exp_avg, exp_avg_sq\)"):
        SM3([param]).load_state_dict(adam.state_dict())


@pytest.mark.parametrize("option", ["lr", "momentum", "beta", "eps", "weight_decay"])
def test_an_option_that_is_no_number_is_named(option: str) -> None:
    with pytest.raises(TypeError, match=f"^{option} must be a number, not '0.1'$"):
        SM3([nn.Parameter(torch.zeros(2))], **{option: "0.1"})  # type: ignore[arg-type]


def test_an_option_that_a_checkpoint_lacks_takes_its_default() -> None:
    param = nn.Parameter(torch.zeros(2, 3))
    saved = SM3([param]).state_dict()
    del saved["param_groups"][0]["variant"]
    optimizer = SM3([param])
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["variant"] == "II"


def stepped(**options) -> tuple[nn.Parameter, SM3]:
    param = nn.Parameter(torch.zeros(3, 4))
    param.grad = torch.ones(3, 4)
    optimizer = SM3([param], **options)
    optimizer.step()
    return param, optimizer


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("cover", "whole", r"shape \(3,\), but its cover needs \(1,\): a cover cannot change"),
        ("momentum_dtype", torch.bfloat16, r"kept as torch.int8.*asks for torch.bfloat16"),
    ],
)
def test_a_group_cannot_change_what_its_state_means(option, value, sentence) -> None:
    _, optimizer = stepped(momentum=0.9, momentum_dtype="int8")
    optimizer.param_groups[0][option] = value
    with pytest.raises(ValueError, match=sentence):
        optimizer.step()


def test_a_group_takes_names_and_dtypes_after_construction_too() -> None:
    param, optimizer = stepped()
    optimizer.param_groups[0].update(momentum=0.9, momentum_dtype=torch.bfloat16, cover="slices")
    optimizer.step()
    assert optimizer.state[param]["momentum_buffer"].dtype == torch.bfloat16
