from __future__ import annotations

import pytest

from memprof.errors import UsageError
from memprof.units import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096 B", 4096),
        ("24GiB", 24 * 2**30),
        ("24GB", 24 * 10**9),
        ("24gb", 24 * 10**9),
        (" 1.5 MiB ", 3 * 2**19),
        ("1.5KB", 1500),
        ("2 TiB", 2**41),
        ("9007199254740993", 2**53 + 1),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "24 GiBs", "24MBx", "1e9", "1,5 GiB", "24G", "nan", "1 2 GiB"])
def test_what_is_no_size_is_one_sentence_with_the_fix(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size; write for example 24GiB") as caught:
        parse_size(text)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1257472, "1.20 MiB"),
        (2**20 - 1, "1.00 MiB"),
        (2**30, "1.00 GiB"),
        (-(2**30), "-1.00 GiB"),
        (3 * 2**40, "3.00 TiB"),
        (5 * 2**50, "5120.00 TiB"),
    ],
)
def test_formats(size: int | None, text: str) -> None:
    assert format_size(size) == text
