"""`--vary` and `--margin`: what they mean, and the one sentence for what they do not."""

from __future__ import annotations

import pytest

from memprof.devices.margin import usable_bytes
from memprof.documents.vary import HIGHEST, Vary, check_knob, parse_vary
from memprof.errors import UsageError

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "vary"),
    [
        ("batch_size", Vary()),
        ("n_layers=2:96", Vary(knob="n_layers", low=2, high=96)),
        (" d_model=64:4096:64 ", Vary(knob="d_model", low=64, high=4096, step=64)),
    ],
)
def test_what_is_varied(text: str, vary: Vary):
    assert parse_vary(text) == vary
    assert parse_vary(str(vary)) == vary


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n_layers=1", "KNOB=LO:HI"),
        ("n_layers=a:b", "KNOB=LO:HI"),
        ("", "KNOB=LO:HI"),
        ("batch_size=0:8", "LO is 0; it must be at least 1"),
        ("batch_size=-3:8", "LO is -3; it must be at least 1"),
        ("batch_size=1:8:0", "STEP is 0; it must be at least 1"),
        ("batch_size=9:8", "HI is 8, below LO"),
    ],
)
def test_wrong_ranges_are_refused(text: str, words: str):
    with pytest.raises(UsageError, match=words.replace("(", r"\(")) as caught:
        parse_vary(text)
    assert "\n" not in str(caught.value)


def test_grid():
    vary = Vary(low=4, high=21, step=8)
    assert [value for value in range(30) if value in vary] == [4, 12, 20]
    assert (vary.last, vary.below(19), vary.below(3), vary.below(HIGHEST)) == (20, 12, 4, 20)


def test_knob_must_be_a_whole_number_of_the_workload():
    knobs = {"n_layers": 4, "dropout": 0.1, "tied": True}
    check_knob(Vary(), "mlp", {})
    check_knob(Vary(knob="n_layers"), "mlp", knobs)
    with pytest.raises(UsageError, match="did you mean 'n_layers'"):
        check_knob(Vary(knob="n_layer"), "mlp", knobs)
    for knob in ("dropout", "tied"):
        with pytest.raises(UsageError, match="whole numbers are searched: batch_size, n_layers"):
            check_knob(Vary(knob=knob), "mlp", knobs)


@pytest.mark.parametrize(("margin", "left"), [("0%", 16), ("25%", 12), ("12.5 %", 14), ("4GiB", 12), ("0", 16)])
def test_margin(margin: str, left: int):
    assert usable_bytes(16 * GIB, margin) == left * GIB


@pytest.mark.parametrize(("margin", "words"), [("half", "such as 5%"), ("100%", "leaves nothing"), ("16GiB", "leaves")])
def test_wrong_margins_are_refused(margin: str, words: str):
    with pytest.raises(UsageError, match=words):
        usable_bytes(16 * GIB, margin)
