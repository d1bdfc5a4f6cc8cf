from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from memprof.errors import UsageError
from memprof.units import format_size, parse_size

SIZES = st.integers(min_value=0, max_value=2**60)
UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


@given(SIZES, st.sampled_from(sorted(UNITS)), st.sampled_from(["", " "]), st.booleans())
def test_whole_numbers_are_exact_in_every_unit(number: int, unit: str, space: str, lower: bool) -> None:
    text = f"{number}{space}{unit}"
    assert parse_size(text.lower() if lower else text) == number * UNITS[unit]


@given(SIZES)
def test_a_formatted_size_parses_back_within_its_last_digit(size: int) -> None:
    assert math.isclose(parse_size(format_size(size)), size, rel_tol=0.0051, abs_tol=0)


@given(SIZES)
def test_the_number_printed_is_between_1_and_1024(size: int) -> None:
    number, unit = format_size(size).split()
    assert float(number) < 1024 or unit == "TiB"
    assert float(number) >= 1 or size == 0


@given(st.integers(min_value=0, max_value=2**50), st.integers(min_value=0, max_value=2**50))
def test_a_larger_size_never_prints_as_a_smaller_one(one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert parse_size(format_size(small)) <= parse_size(format_size(large))


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_usage_error(text: str) -> None:
    try:
        size = parse_size(text)
    except UsageError:
        size = None
    assert size is None or size >= 0
