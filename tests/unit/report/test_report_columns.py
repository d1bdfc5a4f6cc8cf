from __future__ import annotations

from memprof.documents.comparison import Comparison, Peak
from memprof.report.content.columns import columns, fit_text, main_table
from tests.comparisons import COUNT, make_answer, make_broken_run, make_comparison, make_run


def column(comparison: Comparison, key: str) -> list[str]:
    (found,) = (column for column in columns(comparison) if column.key == key)
    return [found.text(run) for run in comparison.runs]


def test_state_is_set_against_the_reference() -> None:
    comparison = make_comparison(make_run("sm3", 1_257_472), make_run("adam", 8 * COUNT), make_run("sgd", 0))
    assert column(comparison, "state_relative_to_reference") == ["0.13 %", "100 %", "0 %"]
    assert "vs adam" in main_table(comparison).titles


def test_the_largest_state_is_the_reference_where_none_is_named_or_it_did_not_finish() -> None:
    runs = [make_run("adagrad", 4 * COUNT), make_run("amsgrad", 12 * COUNT)]
    assert column(make_comparison(*runs, reference=None), "state_relative_to_reference") == ["33 %", "100 %"]
    broken = make_comparison(*runs, make_broken_run("adam", "oom", "full"))
    assert column(broken, "state_relative_to_reference") == ["33 %", "100 %", "-"]


def test_one_optimizer_is_compared_with_nothing() -> None:
    assert not any(title.startswith("vs") for title in main_table(make_comparison(make_run("adam", 8))).titles)


def test_columns_without_a_figure_are_dropped() -> None:
    keys = {column.key for column in columns(make_comparison())}
    assert "peak_reserved_bytes" not in keys
    assert "status" not in keys
    assert {"peak_process_bytes", "largest_batch_size", "largest_model"} <= keys
    cuda = make_run("adam", 8, peak=Peak(allocated_bytes=1, reserved_bytes=2**21, phase="backward", step=2))
    assert column(make_comparison(cuda), "peak_reserved_bytes") == ["2.00 MiB"]
    bare = make_comparison(make_run("adam", 8, fit=None, steps=None))
    assert {"step_seconds", "last_loss", "largest_batch_size", "largest_model"}.isdisjoint(
        column.key for column in columns(bare)
    )


def test_status_appears_with_the_first_run_that_has_none_or_no_figures() -> None:
    comparison = make_comparison(
        make_run("adam", 8), make_broken_run("sgd", "oom", None), make_broken_run("x", "failed", "boom")
    )
    assert column(comparison, "status") == ["ok", "out of memory", "failed"]
    assert main_table(comparison).rows[1][2:] == ("-",) * (len(main_table(comparison).titles) - 2)


def test_step_time_is_the_median_and_the_loss_the_last() -> None:
    comparison = make_comparison(make_run("adam", 8))
    assert column(comparison, "step_seconds") == ["900 ms"]
    assert column(comparison, "last_loss") == ["10.70"]


def test_fit_answers_say_how_they_were_found() -> None:
    assert fit_text(None) == "-"
    assert fit_text(make_answer("batch_size", 61)) == "~61"
    assert fit_text(make_answer("batch_size", 61, method="confirmed")) == "61"
    assert fit_text(make_answer("n_layer", 48, parameters=354_000_000)) == "~48 (354M)"
    assert fit_text(make_answer("batch_size", 0)) == "none"
    assert fit_text(make_answer("n_layer", None)) == "any"


def test_the_model_column_is_named_after_its_knob() -> None:
    assert "largest n_layer" in main_table(make_comparison()).titles


def test_a_knob_that_moves_nothing_keeps_its_column() -> None:
    comparison = make_comparison(make_run("adam", 8, batch=None))
    assert column(comparison, "largest_batch_size") == ["any"]
