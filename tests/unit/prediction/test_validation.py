"""Predicted beside measured: every figure that both have, with its sign, and in the reports."""

from __future__ import annotations

import io
from typing import Any

import pytest

from memprof.documents.comparison import Comparison, Peak, PhasePeak, Run
from memprof.documents.confidence import Deviation, Validation
from memprof.prediction.validate import validate
from memprof.report.content.validation import category_table, error_text, layer_table, phase_table, remark
from memprof.report.render.markdown import to_markdown
from memprof.report.render.terminal import make_console, render
from tests.comparisons import GIB, MIB, make_breakdown, make_broken_run, make_comparison, make_environment, make_run


def run_of(allocated: int, reserved: int, source: str = "measured", **peak: int) -> Run:
    figures = Peak(allocated_bytes=allocated, reserved_bytes=reserved, phase="backward", step=2, **peak)
    phases = {"forward": PhasePeak(allocated_bytes=allocated - MIB), "backward": PhasePeak(allocated_bytes=allocated)}
    changes: dict[str, Any] = {"source": source, "peak": figures, "phases": phases}
    return make_run("adam", 8 * MIB, **changes)


def figures(found: Validation) -> dict[tuple[str, str | None, str | None], tuple[int, int]]:
    return {(one.layer, one.phase, one.category): (one.predicted_bytes, one.measured_bytes) for one in found.deviations}


def test_every_figure_that_both_have_is_compared() -> None:
    found = validate(run_of(10 * GIB, 12 * GIB), run_of(9 * GIB, 13 * GIB, "predicted", tensor_bytes=5))
    pairs = figures(found)
    assert pairs["state", None, None] == (8 * MIB, 8 * MIB)
    assert pairs["allocated", None, None] == (9 * GIB, 10 * GIB)
    assert pairs["reserved", None, None] == (13 * GIB, 12 * GIB)
    assert pairs["allocated", "forward", None] == (9 * GIB - MIB, 10 * GIB - MIB)
    assert pairs["allocated", None, "activations"] == (200 * MIB, 200 * MIB)
    assert not any(layer == "tensors" for layer, _, _ in pairs)  # only one of the two has them
    assert found.upper_held is None


@pytest.mark.parametrize(("upper", "held"), [(12 * GIB, True), (12 * GIB - 1, False)])
def test_the_bound_is_held_or_not(upper: int, held: bool) -> None:
    predicted = run_of(9 * GIB, 11 * GIB, "predicted", reserved_upper_bytes=upper, allocated_upper_bytes=9 * GIB)
    found = validate(run_of(10 * GIB, 12 * GIB), predicted)
    assert (found.upper_bytes, found.upper_held) == (upper, held)


def test_categories_that_only_one_has_count_as_nothing_in_the_other() -> None:
    measured, predicted = make_run("adam", 8), make_run("adam", 8)
    held = make_breakdown(8, MIB).model_copy(update={"by_category": {"workspace": MIB}})
    pairs = figures(validate(measured, predicted.model_copy(update={"breakdown": held})))
    assert pairs["allocated", None, "workspace"] == (MIB, 0)
    assert pairs["allocated", None, "activations"] == (0, 200 * MIB)


@pytest.mark.parametrize("ending", ["oom", "failed"])
def test_a_run_that_did_not_finish_is_the_reason(ending: str) -> None:
    broken = make_broken_run("adam", ending, "too much")
    word = {"oom": "ran out of memory", "failed": "failed"}[ending]
    assert validate(broken, make_run("adam", 8)).reason == f"The measured run {word}: too much"
    assert validate(make_run("adam", 8), broken).deviations == []


@pytest.mark.parametrize(
    ("predicted", "measured", "text"),
    [
        (5, 5, "exact"),
        (99 * MIB, 100 * MIB, "-1.0 %"),
        (150 * MIB, 100 * MIB, "+50 %"),
        (GIB + 100, GIB, "+100 B"),
        (3 * MIB, 0, "+3.00 MiB"),
    ],
)
def test_errors_are_signed(predicted: int, measured: int, text: str) -> None:
    assert error_text(Deviation(layer="state", predicted_bytes=predicted, measured_bytes=measured)) == text
    assert error_text(None) == "-"


def compared() -> Comparison:
    measured = run_of(10 * GIB, 12 * GIB)
    predicted = run_of(9 * GIB, 12 * GIB, "predicted", reserved_upper_bytes=13 * GIB)
    failed = make_run("sgd", 0, validation=Validation(reason="the model reads a value"))
    return make_comparison(measured.model_copy(update={"validation": validate(measured, predicted)}), failed)


def test_tables_show_the_error_by_layer_phase_and_category() -> None:
    comparison = compared()
    layers = layer_table(comparison)
    assert layers.titles == ("optimizer", "state", "allocated", "reserved", "upper bound")
    assert layers.rows == (("adam", "exact", "-10 %", "exact", "held"),)
    assert phase_table(comparison).rows == (("adam: allocated", "-10 %", "-10 %"),)
    assert set(category_table(comparison).rows[0][1:]) == {"exact"}


def test_the_remark_names_what_was_measured_on() -> None:
    comparison = compared()
    newer = comparison.model_copy(update={"environment": make_environment(instruction_set="AVX2")})
    assert remark(newer).endswith("Measured on A CPU with AVX2, 2 cores, 2 threads.")
    assert "Measured on A CPU with AVX2" in to_markdown(newer)
    (run, _) = comparison.runs
    on_gpu = {"environment": make_environment(gpu="A GPU"), "runs": [run.model_copy(update={"device": "cuda:0"})]}
    assert remark(comparison.model_copy(update=on_gpu)).endswith("Measured on A GPU.")
    assert remark(make_comparison(make_run("adam", 8))) == ""


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_shows_them_and_says_why_there_is_none(width: int) -> None:
    stream = io.StringIO()
    console = make_console(stream)
    console.width = width
    render(compared(), console)
    text = stream.getvalue()
    assert "Predicted against measured" in text
    assert "sgd: the model reads a value" in text
    assert "Measured on A CPU, 2 cores, 2 threads." in " ".join(text.split())
    assert "-10 %" in text
