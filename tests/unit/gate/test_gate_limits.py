from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from memprof.errors import UsageError
from memprof.gate.limits import parse_limits
from memprof.gate.metrics import METRICS

PEAK, BATCH = METRICS["peak_allocated_bytes"], METRICS["max_batch_size"]


def parse(value: Any, name: str = "peak_allocated_bytes") -> list[Any]:
    return parse_limits(METRICS[name], value, "error", None)


def test_a_ceiling_is_a_size() -> None:
    (limit,) = parse("20 GiB")
    assert (limit.bound, limit.relative, limit.text) == (20 * 2**30, False, "20 GiB")
    assert parse("20GB")[0].bound == 20 * 10**9
    assert parse("1.5 MiB")[0].bound == 3 * 2**19


def test_a_change_is_a_share_or_an_amount() -> None:
    share, amount = parse("+2.5%")[0], parse("+ 64MiB")[0]
    assert (share.share, share.relative) == (Fraction(1, 40), True)
    assert (amount.amount, amount.share) == (64 * 2**20, None)
    assert share.allowance(1000) == 25
    assert share.allowance(999) == 24  # rounded down: the limit is never more than was written
    assert amount.allowance(1) == 64 * 2**20
    assert parse("+0%")[0].allowance(10**12) == 0


def test_a_ceiling_and_a_change_stand_in_a_list() -> None:
    assert [limit.relative for limit in parse(["20 GiB", "+2%"])] == [False, True]
    assert parse([]) == []


def test_figures_of_which_more_is_better_have_floors() -> None:
    floor, loss, count = parse(16, "max_batch_size") + parse("-5%", "max_batch_size") + parse("-2", "max_batch_size")
    assert (floor.bound, loss.share, count.amount) == (16, Fraction(1, 20), 2)
    assert parse("16", "max_batch_size")[0].bound == 16


def test_a_table_has_its_own_level_and_message() -> None:
    (limit,) = parse({"limit": "1 GiB", "level": "warn", "message": "ask us"})
    assert (limit.level, limit.message) == ("warn", "ask us")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (20, 'peak_allocated_bytes = 20 has no unit; write "20 GiB", or "20 B" for bytes'),
        ("20", "has no unit"),
        ("+64", "has no unit"),
        ("1.5", "has no unit"),
        ("2%", "lacks its sign; write +2%"),
        ("-2%", "it may always fall; write +2%"),
        ("20 GiBB", "is not a limit; write"),
        ("", "is not a limit"),
        (True, "is not a limit"),
        (1.5, "is not a limit"),
        (["20 GiB", "21 GiB"], "two absolute limits, '20 GiB' and '21 GiB'; keep one"),
        (["+2%", "+1 MiB"], "two limits on the change"),
        ({"level": "warn"}, "lacks its limit"),
        ({"limit": "1 GiB", "levle": "warn"}, "no key 'levle'; did you mean 'level'?"),
        ({"limit": "1 GiB", "level": "eror"}, "did you mean 'error'?"),
        ({"limit": "1 GiB", "message": 3}, "a message is a text in quotes"),
    ],
)
def test_what_is_no_limit_is_said_in_one_sentence(value: Any, sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(value)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [("+5%", "it may always rise; write -5%"), ("16 GiB", "not a whole number"), ("1.5", "not a whole number")],
)
def test_what_is_no_floor_is_said_in_one_sentence(value: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        parse(value, "max_batch_size")
