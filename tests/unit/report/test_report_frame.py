from __future__ import annotations

import io

import pandas as pd

from memprof.documents.comparison import Comparison
from memprof.report.render.frame import to_csv, to_frame, to_html
from tests.comparisons import COUNT, make_broken_run, make_comparison, make_run


def test_a_row_holds_the_exact_figures() -> None:
    row = to_frame(make_comparison(make_run("sm3", 2**53 + 1), make_run("adam", 8 * COUNT))).iloc[0]
    assert row["optimizer"] == "sm3"
    assert row["state_bytes"] == 2**53 + 1
    assert row["state_relative_to_reference"] == (2**53 + 1) / (8 * COUNT)
    assert row["step_seconds"] == 0.9
    assert row["last_loss"] == 10.7
    assert row["largest_batch_size"] == 52
    assert row["largest_batch_size_method"] == "extrapolated"
    assert row["largest_model_parameters"] == 354_000_000
    assert row["at_peak_activations_bytes"] == 200 * 2**20
    assert row["parameters"] == COUNT


def test_absent_figures_are_missing_and_leave_integers_integers() -> None:
    frame = to_frame(make_comparison(make_run("adam", 8), make_broken_run("sgd", "oom", "full")))
    assert frame["state_bytes"].tolist() == [8, pd.NA]
    assert str(frame["state_bytes"].dtype) == "Int64"
    assert frame["peak_reserved_bytes"].isna().all()
    assert frame["status"].tolist() == ["ok", "oom"]
    assert frame["reason"].tolist() == [pd.NA, "full"]


def test_columns_and_types_do_not_depend_on_the_figures() -> None:
    full, empty = to_frame(make_comparison()), to_frame(make_comparison(make_broken_run("a", "failed", "x")))
    none = to_frame(make_comparison(runs=[]))
    assert full.dtypes.equals(empty.dtypes)
    assert list(none.columns) == list(full.columns)


def test_sizes_are_bytes_by_name() -> None:
    frame = make_comparison().to_frame()
    sizes = [name for name in frame.columns if name.endswith("_bytes")]
    assert {"state_bytes", "peak_allocated_bytes", "peak_process_bytes", "parameter_bytes"} <= set(sizes)
    assert all(str(frame[name].dtype) == "Int64" for name in sizes)


def test_csv_reads_back() -> None:
    comparison = make_comparison(make_run('a,"b"\n|', 8), make_broken_run("sgd", "oom", "full"))
    read = pd.read_csv(io.StringIO(to_csv(comparison)))
    assert read["optimizer"].tolist() == ['a,"b"\n|', "sgd"]
    assert read["state_bytes"].tolist()[0] == 8
    assert "\r" not in to_csv(comparison)
    assert to_csv(comparison).startswith("model,batch_size,device,source,optimizer,status,reason,")


def test_html_escapes_what_users_named() -> None:
    comparison = make_comparison(make_run("<script>alert(1)</script>", 8), make_run("a&b", 8))
    shown = to_html(comparison)
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "a&amp;b" in shown
    assert shown.count("<tr>") == 3


def test_the_documents_methods_are_these_functions() -> None:
    comparison: Comparison = make_comparison()
    assert comparison._repr_html_() == to_html(comparison)
    assert comparison.to_frame().equals(to_frame(comparison))
