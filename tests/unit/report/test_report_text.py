from __future__ import annotations

import pytest

from memprof.documents.wording import phase_words
from memprof.units import format_count, format_loss, format_seconds, format_share


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "-"),
        (0.0, "0 %"),
        (0.00001, "<0.01 %"),
        (0.001263, "0.13 %"),
        (0.0842, "8.4 %"),
        (0.0996, "10 %"),
        (0.5, "50 %"),
        (1.0, "100 %"),
        (2.004, "200 %"),
    ],
)
def test_shares(share: float | None, text: str) -> None:
    assert format_share(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.000_000_4, "0.40 us"),
        (0.000_845, "845 us"),
        (0.000_999_6, "1.00 ms"),
        (0.0123, "12.3 ms"),
        (0.9, "900 ms"),
        (0.9996, "1.00 s"),
        (61.25, "61.2 s"),
        (125.0, "125 s"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "-"), (0, "0"), (999, "999"), (1000, "1.00K"), (124_439_808, "124M"), (1_235_814_400, "1.24B")],
)
def test_counts(count: int | None, text: str) -> None:
    assert format_count(count) == text


def test_losses_have_four_digits() -> None:
    assert format_loss(10.70123) == "10.70"
    assert format_loss(0.000123456) == "0.0001235"
    assert format_loss(float("nan")) == "nan"
    assert format_loss(None) == "-"


def test_phases_read_as_words_also_unknown_ones() -> None:
    assert phase_words("backward") == "the backward pass"
    assert phase_words("pipeline_flush") == "pipeline flush"
