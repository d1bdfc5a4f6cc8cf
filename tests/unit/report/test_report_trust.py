"""How far figures can be trusted, as the reports show it: upper bounds and what a prediction rests on."""

from __future__ import annotations

import io
from typing import Any

import pytest

from memprof.documents.comparison import Comparison, Peak, Run
from memprof.documents.confidence import Confidence, SizeRange
from memprof.report.content.columns import bounded_size, columns
from memprof.report.render.frame import to_frame
from memprof.report.render.markdown import to_markdown
from memprof.report.render.terminal import make_console, render
from tests.comparisons import GIB, MIB, make_comparison, make_run


def make_predicted(spec: str, **changes: Any) -> Run:
    peak = Peak(
        allocated_bytes=19 * GIB,
        reserved_bytes=20 * GIB,
        process_bytes=20 * GIB + 400 * MIB,
        phase="backward",
        step=2,
        allocated_upper_bytes=19 * GIB,
        reserved_upper_bytes=22 * GIB,
        process_upper_bytes=23 * GIB,
    )
    context = SizeRange(
        what="CUDA context",
        layer="process",
        low_bytes=300 * MIB,
        bytes=400 * MIB,
        high_bytes=800 * MIB,
        source="a rule",
    )
    confidence = Confidence(basis=["Replayed."], warnings=["mylib::op in head: unknown scratch."], ranges=[context])
    values = {"source": "predicted", "device": "rtx-4090", "peak": peak, "confidence": confidence, "notes": []}
    return make_run(spec, 8, **{**values, **changes})


def on_a_terminal(comparison: Comparison, width: int = 140) -> str:
    stream = io.StringIO()
    console = make_console(stream)
    console.width = width
    render(comparison, console)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("size", "upper", "text"),
    [
        (20 * GIB, 22 * GIB, "20.00 GiB (<= 22.00)"),
        (1000 * MIB, 2 * GIB, "1000.00 MiB (<= 2.00 GiB)"),
        (20 * GIB, 20 * GIB + 1, "20.00 GiB"),
        (20 * GIB, None, "20.00 GiB"),
        (None, 22 * GIB, "-"),
    ],
)
def test_a_bound_is_shown_where_it_says_something(size: int | None, upper: int | None, text: str) -> None:
    assert bounded_size(size, upper) == text


def test_every_layer_has_its_bound_in_its_column() -> None:
    texts = {column.key: column.text(make_predicted("adam")) for column in columns(make_comparison())}
    assert texts["peak_allocated_bytes"] == "19.00 GiB"
    assert texts["peak_process_bytes"] == "20.39 GiB (<= 23.00)"


def test_frames_hold_the_bounds_in_bytes() -> None:
    frame = to_frame(make_comparison(make_predicted("adam"), make_run("sgd", 0)))
    assert frame["peak_reserved_upper_bytes"].tolist()[0] == 22 * GIB
    assert frame["peak_process_upper_bytes"].tolist()[0] == 23 * GIB
    assert frame["peak_allocated_upper_bytes"].isna().tolist() == [False, True]


def test_reports_say_what_a_prediction_rests_on_once_and_warn_by_operator() -> None:
    comparison = make_comparison(make_predicted("adam"), make_predicted("sgd"))
    for text in (to_markdown(comparison), on_a_terminal(comparison)):
        assert text.count("What the prediction rests on") == text.count("Replayed.") == 1
        assert text.count("mylib::op in head: unknown scratch.") == 1
    assert "| all | CUDA context | 300.00 MiB | 400.00 MiB | 800.00 MiB |" in to_markdown(comparison)


def test_measured_runs_have_no_such_section() -> None:
    assert "rests on" not in to_markdown(make_comparison()) + on_a_terminal(make_comparison())
