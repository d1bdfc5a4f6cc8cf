from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from memprof.documents.comparison import Comparison
from memprof.report.render.parts import render_parts
from memprof.report.render.terminal import PLAIN_WIDTH, bar, make_console, render
from memprof.report.text_table import Table
from tests.comparisons import COUNT, default_runs, make_broken_run, make_comparison, make_run

ODD_NAMES = [
    "[bold]x[/bold],a=[1]",
    "a|b`c",
    "pkg.mod:Optimizer,lr=0.001,betas=(0.9,0.95),weight_decay=0.1",
    "😀:模型",
]
NUMBERS = re.compile(r"949\.40 MiB|~52|~48 \(354M\)|2\.05 GiB|900 ms|100 %")


def draw(comparison: Comparison, width: int) -> str:
    stream = io.StringIO()
    render(comparison, Console(file=stream, width=width, highlight=False, markup=False, emoji=False))
    return stream.getvalue()


@pytest.mark.parametrize("width", [50, 80, 140, 200])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(width: int) -> None:
    shown = draw(make_comparison(), width)
    assert max(map(cell_len, shown.splitlines())) <= width
    assert "…" not in shown
    assert {"949.40 MiB", "~52", "~48 (354M)", "2.05 GiB", "900 ms", "100 %"} == set(NUMBERS.findall(shown))


def test_at_140_columns_every_figure_stands_in_one_row() -> None:
    (row,) = (line for line in draw(make_comparison(), 140).splitlines() if line.startswith("adam ") and "~52" in line)
    for figure in (
        "foreach",
        "949.40 MiB",
        "8.00",
        "100 %",
        "2.05 GiB",
        "2.35 GiB",
        "backward",
        "900 ms",
        "~48 (354M)",
    ):
        assert figure in row


def test_at_80_columns_the_first_table_holds_what_matters_most() -> None:
    first = draw(make_comparison(), 80).split("\n\n")[1]
    assert all(heading in first for heading in ("state", "adam", "peak", "set by", "batch"))
    assert "loss" not in first


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_are_shown_as_they_are(name: str, width: int) -> None:
    shown = draw(make_comparison(make_run(name, 8 * COUNT), make_broken_run(name + "!", "failed", name)), width)
    assert max(map(cell_len, shown.splitlines())) <= width
    # A long name is folded within its cell, so it is looked for in pieces.
    for piece in re.findall(r".{1,16}", name):
        assert piece in shown


def test_failures_show_their_reasons_and_the_others_their_rows() -> None:
    comparison = make_comparison(
        *default_runs(),
        make_broken_run("big", "oom", "it needs 9 GiB"),
        make_broken_run("bad", "failed", None),
    )
    shown = draw(comparison, 140)
    assert "big: out of memory: it needs 9 GiB" in shown
    assert "bad: failed: no reason was given" in shown
    assert "~52" in shown


def test_only_failures_still_render() -> None:
    shown = draw(make_comparison(make_broken_run("adam", "oom", "full")), 80)
    assert "No optimizer finished: every run ran out of memory." in shown
    assert "Who holds" not in shown


def test_notes_are_shown_once_with_whom_they_are_about() -> None:
    runs = [make_run("a", 8, notes=["same"]), make_run("b", 8, notes=["same", "odd"])]
    shown = draw(make_comparison(*runs), 80)
    assert re.search(r"^- same *$", shown, re.MULTILINE)
    assert re.search(r"^- b: odd *$", shown, re.MULTILINE)


def test_the_capacity_and_the_meaning_of_the_tilde_are_said() -> None:
    shown = draw(make_comparison(), 140)
    assert "within 24.00 GiB, all of the device's memory; ~ is extrapolated from smaller runs" in shown


def test_bars_fill_their_width_with_the_categories_shares() -> None:
    drawn = bar({"parameters": 50, "gradients": 25, "optimizer_state": 25}, 100, 8).plain
    assert drawn == "PPPPGGSS"
    assert bar({"parameters": 1, "gradients": 1, "activations": 1}, 3, 10).plain.count("P") in (3, 4)
    assert len(bar({"parameters": 1, "gradients": 1, "activations": 1}, 3, 10).plain) == 10
    assert bar({}, 0, 10).plain == ""


def test_no_color_leaves_no_colour_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    def codes() -> list[str]:
        stream = io.StringIO()
        render(make_comparison(), Console(file=stream, width=80, force_terminal=True, color_system="standard"))
        return re.findall(r"\x1b\[([0-9;]*)m", stream.getvalue())

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert any(re.search(r"\b[349][0-7]\b", code) for code in codes())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not any(re.search(r"\b[349][0-7]\b", code) for code in codes())


def test_a_stream_that_is_no_terminal_gets_a_fixed_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert make_console(io.StringIO()).width == PLAIN_WIDTH
    monkeypatch.setenv("COLUMNS", "90")
    assert make_console(io.StringIO()).width == 90


def test_words_that_are_too_long_for_the_terminal_go_on_in_the_next_line() -> None:
    how = "--checkpoint-activations PYTORCH_ALLOC_CONF=expandable_segments:True"
    table = Table(
        titles=("change", "how"), rows=(("activation checkpointing", how),), ranks=(0, 1), right=(False, False)
    )
    stream = io.StringIO()
    render_parts("advice", [table], Console(file=stream, width=60, highlight=False))
    shown = stream.getvalue()
    assert max(map(cell_len, shown.splitlines())) <= 60
    assert "".join(how.split()) in "".join(line[20:] for line in shown.splitlines()).replace(" ", "")
