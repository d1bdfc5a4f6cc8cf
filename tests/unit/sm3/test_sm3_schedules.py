"""Warm-up, cool-down and Polyak averaging."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sm3 import SM3, averaging_bytes, polyak_average, warmup, warmup_cooldown


def rates(make, steps: int) -> list[float]:
    param = nn.Parameter(torch.zeros(1))
    optimizer = SM3([param], lr=2.0)
    schedule = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        param.grad = torch.ones(1)
        optimizer.step()
        schedule.step()
    return found


def test_linear_warm_up_is_the_step_over_the_length() -> None:
    assert rates(lambda o: warmup(o, 4, power=1), 6) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_quadratic_warm_up() -> None:
    assert rates(lambda o: warmup(o, 4), 6) == [0.125, 0.5, 1.125, 2.0, 2.0, 2.0]


def test_no_warm_up_is_constant() -> None:
    assert rates(lambda o: warmup(o, 0), 3) == [2.0, 2.0, 2.0]


def test_cool_down_falls_evenly_over_the_last_tenth_and_ends_at_zero() -> None:
    found = rates(lambda o: warmup_cooldown(o, 20, warmup_steps=0), 21)
    assert found[:18] == [2.0] * 18
    assert found[18:] == pytest.approx([4 / 3, 2 / 3, 0.0])


def test_the_default_is_five_per_cent_up_and_ten_per_cent_down() -> None:
    found = rates(lambda o: warmup_cooldown(o, 100), 100)
    assert sum(rate == 2.0 for rate in found) == 100 - 4 - 10
    assert found[0] == pytest.approx(2.0 / 25)
    assert min(found[-10:]) > 0


def test_a_schedule_resumes_from_its_state() -> None:
    param = nn.Parameter(torch.zeros(1))
    first, second = SM3([param], lr=2.0), SM3([param], lr=2.0)
    one = warmup(first, 4)
    for _ in range(2):
        first.step()
        one.step()
    other = warmup(second, 4)
    other.load_state_dict(one.state_dict())
    second.step()
    other.step()
    assert second.param_groups[0]["lr"] == 2.0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"total_steps": 10, "warmup_steps": -1}, "warmup_steps must be"),
        ({"total_steps": 10, "warmup_steps": 6, "cooldown_steps": 5}, "do not fit"),
        ({"total_steps": 10, "power": -1.0}, "power must be"),
    ],
)
def test_impossible_schedules_are_refused(arguments, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        warmup_cooldown(SM3([nn.Parameter(torch.zeros(1))]), **arguments)


def averaged(decay: float | None) -> float:
    model = nn.Linear(1, 1, bias=False)
    average = polyak_average(model, decay)
    for value in (1.0, 2.0, 6.0):
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
    return average.module.weight.item()


def test_polyak_average_is_the_mean_of_the_weights() -> None:
    assert averaged(None) == pytest.approx(3.0)


def test_a_decay_makes_it_exponential() -> None:
    assert averaged(0.5) == pytest.approx(0.5 * (0.5 * 1 + 0.5 * 2) + 0.5 * 6)


def test_memory_of_averaging_is_as_stated() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    average = polyak_average(model)
    kept = [*average.parameters(), *average.buffers()]
    assert sum(tensor.nbytes for tensor in kept) == averaging_bytes(model)


def test_a_decay_above_one_is_refused() -> None:
    with pytest.raises(ValueError, match="decay must lie"):
        polyak_average(nn.Linear(1, 1), 1.5)
