"""The accuracy harness: its statistics, counted by hand, and what it takes from the table of measured runs."""

from __future__ import annotations

import pytest

from tests.accuracy.xmem.lengths import LONGEST, STEPS, draw_lengths, full_lengths
from tests.accuracy.xmem.predictions import Prediction
from tests.accuracy.xmem.statistics import (
    failures,
    peer_errors,
    peer_failures,
    percentile,
    summarise,
    upper_held,
    upper_width,
)
from tests.accuracy.xmem.truth import Answer, Row, read_rows

_GB = 10**9


def row(truth: int, oom: bool = False, **answers: Answer) -> Row:
    return Row("cnn", "VGG16", "SGD", 200, 0, "rtx-3060", 12 * _GB, truth, oom, tuple(answers.items()), 10.0)


def prediction(truth: int, said: int | None, oom: bool = False, said_oom: bool = False) -> Prediction:
    return Prediction(row(truth, oom), said, None if said is None else said + _GB // 10, said_oom, 1.0)


def test_summary_counted_by_hand() -> None:
    summary = summarise([-0.03, 0.01, 0.02, -0.04, 0.10])
    assert summary is not None
    assert summary.rows == 5
    assert summary.median == pytest.approx(0.03)
    assert summary.p90 == summary.p95 == summary.worst == pytest.approx(0.10)
    assert summary.signed == pytest.approx(0.01)
    assert summary.under == pytest.approx(0.4)
    assert summarise([]) is None


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 5), (0.9, 9), (0.91, 10), (1.0, 10)])
def test_percentile_is_the_nearest_rank(share: float, value: int) -> None:
    assert percentile([10, 3, 1, 2, 5, 4, 7, 6, 9, 8], share) == value


def test_a_row_that_ran_out_of_memory_has_no_error() -> None:
    assert prediction(8 * _GB, 9 * _GB).error == pytest.approx(0.125)
    assert prediction(8 * _GB, 9 * _GB, oom=True).error is None
    assert prediction(8 * _GB, None).error is None


def test_the_upper_bound_is_held_against_known_truths_only() -> None:
    inside, outside = prediction(6 * _GB, 5_900_000_000), prediction(6 * _GB, 5_899_999_999)
    assert upper_held([inside]) == 1.0
    assert upper_held([inside, outside]) == 0.5
    assert upper_held([inside, outside, prediction(9 * _GB, 6 * _GB, oom=True), prediction(9 * _GB, None)]) == 0.5
    assert upper_held([]) is None


def test_how_far_the_upper_bound_is_above_the_estimate() -> None:
    near, far, unknown = prediction(6 * _GB, 5 * _GB), prediction(6 * _GB, _GB), prediction(9 * _GB, 6 * _GB, oom=True)
    assert upper_width([near]) == pytest.approx(0.02)
    assert upper_width([near, near, far, unknown, prediction(9 * _GB, None)]) == pytest.approx(0.02)
    assert upper_width([unknown]) is None


def test_both_checks() -> None:
    found = failures(
        [
            prediction(6 * _GB, 6 * _GB),  # half of the GPU: the limit holds
            prediction(6 * _GB, 5_930_000_000),  # 0.494, rounded 0.49: it does not
            prediction(6 * _GB, 5_960_000_000),  # too low, but 0.4967 is rounded to 0.50
            prediction(6 * _GB, 13 * _GB, said_oom=True),  # it did fit
            prediction(11 * _GB, 13 * _GB, oom=True, said_oom=True),
            prediction(11 * _GB, 11 * _GB, oom=True),  # it did not fit
        ]
    )
    assert (found.flag_wrong, found.flag_rows) == (2, 6)
    assert (found.cap_failed, found.cap_rows) == (1, 3)
    assert found.failed == 3
    assert found.rate == 0.5


def test_a_limit_at_the_upper_bound_is_easier_to_hold() -> None:
    low = prediction(6 * _GB, 5_930_000_000)  # its upper bound is 6.03 GB, half of the GPU
    assert failures([low]).cap_failed == 1
    assert failures([low], upper=True).cap_failed == 0


def test_other_estimators_are_judged_by_their_second_run_or_by_the_same_rule() -> None:
    rows = [
        row(6 * _GB, xmem=Answer(5 * _GB, True, False)),  # a limit that held although it was below the truth
        row(6 * _GB, xmem=Answer(7 * _GB, True, True)),  # one that did not hold although it was above
        row(6 * _GB, xmem=Answer(5 * _GB, None, None)),  # no checks recorded
        row(11 * _GB, oom=True, xmem=Answer(9 * _GB, False, None)),
    ]
    second = peer_failures(rows, "xmem", total_share=False)
    assert (second.cap_failed, second.cap_rows, second.flag_wrong, second.failed) == (1, 2, 1, 2)
    share = peer_failures(rows, "xmem", total_share=True)
    assert (share.cap_failed, share.cap_rows, share.flag_wrong, share.failed) == (1, 2, 1, 2)
    assert peer_errors(rows, "xmem") == pytest.approx([-1 / 6, 1 / 6, -1 / 6])


def test_the_table_is_read_whole() -> None:
    rows = read_rows()
    assert len(rows) == 117
    assert sum(row.oom for row in rows) == 13
    assert {row.device for row in rows} == {"rtx-3060", "rtx-4060", "a100-40gb"}
    first = rows[1]
    assert (first.model, first.batch_size, first.truth_bytes) == ("EleutherAI/gpt-neo-125M", 10, 4_445_962_240)
    assert first.answer("llmem") == Answer(6_328_156_160, True, False)
    published = {"xmem": 0.0759463960, "dnnmem": 0.2594339623}  # the table's own errors for this row
    for peer, error in published.items():
        assert abs(peer_errors([first], peer)[0]) == pytest.approx(error, abs=1e-4)


def test_shuffles_have_the_distribution_of_the_lines() -> None:
    lengths = [length for seed in range(50) for step in draw_lengths(40, 0, seed) for length in step]
    assert len(lengths) == 50 * STEPS * 40
    assert sum(length == 0 for length in lengths) / len(lengths) == pytest.approx(2766 / 8118, abs=0.02)
    assert sum(length == LONGEST for length in lengths) / len(lengths) == pytest.approx(1939 / 8118, abs=0.02)


def test_tokens_of_the_tokenizer_are_added_before_the_cut() -> None:
    plain, longer = draw_lengths(64, 0, seed=7), draw_lengths(64, 1, seed=7)
    assert longer == tuple(tuple(min(LONGEST, length + 1) for length in step) for step in plain)
    assert full_lengths(3) == ((LONGEST,) * 3,) * STEPS
