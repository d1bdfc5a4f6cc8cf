from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from memprof.documents.comparison import Comparison, FitPoint
from memprof.documents.fit import Evaluations, FitCell, FitDevice, FitReport
from memprof.documents.recipe import Recipe
from memprof.documents.timeline import Owner, PhaseStart, Timeline
from memprof.documents.vary import Vary
from memprof.report.figures import SvgFigure, draw_figures
from memprof.report.figures.matrix import draw_matrix
from memprof.report.figures.svg import Drawing, byte_ticks, clip
from memprof.units import format_size
from tests.comparisons import COUNT, GIB, MIB, make_answer, make_broken_run, make_comparison, make_environment, make_run

SVG = "{http://www.w3.org/2000/svg}"


def make_timeline(peak: int, reserved: int | None = None) -> Timeline:
    levels = [peak // 2, peak // 2, peak, peak // 4, peak // 2]
    phases = [("forward", 0), ("backward", 20), ("optimizer", 80)]
    return Timeline(
        step=2,
        n_events=100,
        events=[0, 20, 40, 80, 100],
        allocated_bytes=levels,
        reserved_bytes=None if reserved is None else [reserved] * 5,
        phases=[PhaseStart(phase=phase, event=event) for phase, event in phases],
        owners=[
            Owner(category="parameters", module="", operator="", points=[0], levels_bytes=[peak // 4]),
            Owner(
                category="activations",
                module="blocks.*.up",
                operator="aten::mm",
                points=[0, 2, 3, 4],
                levels_bytes=[peak // 4, peak - peak // 4, 0, peak // 4],
            ),
        ],
    )


def drawn(comparison: Comparison) -> dict[str, SvgFigure]:
    return {figure.name: figure for figure in draw_figures(comparison)}


def texts(figure: SvgFigure) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(figure.svg).iter(f"{SVG}text")]


def make_full(*names: str) -> Comparison:
    fit = {"batch_size": make_answer("batch_size", 52)}
    runs = [make_run(name, 8 * COUNT, timeline=make_timeline(2 * GIB, 3 * GIB), fit=fit) for name in names]
    return make_comparison(*runs)


def test_all_three_are_drawn_and_say_what_they_show() -> None:
    figures = drawn(make_full("sm3", "adam"))
    assert list(figures) == ["peak", "timeline", "batch"]
    for figure in figures.values():
        root = ElementTree.fromstring(figure.svg)
        assert root.get("role") == "img"
        assert root.findtext(f"{SVG}desc") == figure.text
        assert "sm3" in figure.text
        assert "prefers-color-scheme:dark" in figure.svg
    assert "sm3 peaks at 2.00 GiB in backward, reserved up to 3.00 GiB." in figures["timeline"].text


def test_the_same_comparison_gives_the_same_bytes() -> None:
    comparison = make_full("sm3", "adam")
    again = Comparison.model_validate_json(comparison.to_json())
    assert list(draw_figures(comparison)) == list(draw_figures(again))


def test_bars_are_as_long_as_the_bytes_they_stand_for() -> None:
    figure = drawn(make_full("adam"))["peak"]
    bars = [
        rect for rect in ElementTree.fromstring(figure.svg).iter(f"{SVG}rect") if "cut" in (rect.get("class") or "")
    ]
    run = make_full("adam").runs[0]
    assert run.breakdown is not None
    lengths = {rect.findtext(f"{SVG}title", "").split(":")[0]: float(rect.get("width") or 0) for rect in bars}
    scale = lengths["parameters"] / run.breakdown.by_category["parameters"]
    assert lengths["optimizer state"] == pytest.approx(run.breakdown.by_category["optimizer_state"] * scale, rel=0.01)
    assert lengths["activations"] == pytest.approx(run.breakdown.by_category["activations"] * scale, rel=0.01)
    assert format_size(run.breakdown.total_bytes) in texts(figure)


def test_a_capacity_far_above_the_peaks_is_named_and_not_drawn() -> None:
    far = drawn(make_full("adam"))["peak"]
    assert "capacity 24.00 GiB →" in texts(far)
    assert 'class="limit"' not in far.svg
    near = make_full("adam").model_copy(
        update={"capacity": make_comparison().capacity.model_copy(update={"bytes": GIB})}
    )
    assert 'class="limit"' in drawn(near)["peak"].svg


def test_runs_without_figures_have_their_row() -> None:
    comparison = make_comparison(
        make_run("adam", 8), make_broken_run("big", "oom", "full"), make_broken_run("x", "failed", "y")
    )
    figure = drawn(comparison)["peak"]
    assert {"big", "out of memory", "x", "failed"} <= set(texts(figure))
    assert "big: out of memory." in figure.text
    assert list(drawn(make_comparison(make_broken_run("big", "oom", "full")))) == []


def test_out_of_memory_points_are_crossed() -> None:
    points = [
        FitPoint(value=4, peak_bytes=GIB),
        FitPoint(value=8, peak_bytes=2 * GIB),
        FitPoint(value=16, peak_bytes=None),
    ]
    answer = make_answer("batch_size", 8, peak_bytes=2 * GIB, next_peak_bytes=None, points=points)
    figure = drawn(make_comparison(make_run("adam", 8, fit={"batch_size": answer})))["batch"]
    assert "adam 4: 1.00 GiB, 8: 2.00 GiB, 16: out of memory." in figure.text
    assert "filled: tried; crossed: out of memory" in texts(figure)
    x16 = max(float(x) for x in re.findall(r"M([\d.]+) [\d.]+l8 8m0 -8", figure.svg))
    assert x16 == 760 - 24 - 4  # the largest batch size is at the right end


def test_a_batch_size_that_does_not_move_the_peak_draws_nothing() -> None:
    answer = make_answer(
        "batch_size", None, peak_bytes=None, next_peak_bytes=None, points=[FitPoint(value=1, peak_bytes=8)]
    )
    assert "batch" not in drawn(make_comparison(make_run("adam", 8, fit={"batch_size": answer})))


@pytest.mark.parametrize("name", ["a|b`c`", "<script>&'\"", "emoji 🔥 ünï", "tab\tand\x07bell", "x" * 300, "[b]"])
def test_any_name_gives_well_formed_files(name: str) -> None:
    for figure in draw_figures(make_full(name, "adam")):
        ElementTree.fromstring(figure.svg)
    assert "<script" not in "".join(figure.svg for figure in draw_figures(make_full(name)))


def test_empty_categories_take_no_room() -> None:
    run = make_run("sgd", 0)
    assert "optimizer state" not in drawn(make_comparison(run))["peak"].text


@pytest.mark.parametrize("most", [0, 1, 1023, 5 * MIB, 23 * GIB, 2**50])
def test_ticks_begin_at_nothing_and_reach_the_largest(most: int) -> None:
    ticks = byte_ticks(most)
    assert ticks[0] == 0
    assert ticks[-1] >= most
    assert 2 <= len(ticks) <= 8


def test_text_is_escaped_and_cut() -> None:
    drawing = Drawing("a<b", "c&d")
    drawing.text(0, 0, "<b>\n&")
    assert '<text x="0" y="0">&lt;b&gt; &amp;</text>' in drawing.to_svg(10)
    assert clip("abcdefgh", 6.6 * 4) == "abc…"


def make_fit(*cells: tuple[str, str, int | None]) -> FitReport:
    devices = list(dict.fromkeys(device for _, device, _ in cells))
    return FitReport(
        environment=make_environment(),
        workload=make_comparison().workload,
        recipe=Recipe(),
        vary=Vary(knob="batch_size"),
        margin="0%",
        devices=[
            FitDevice(name=name, simulated=True, capacity_bytes=24 * GIB, usable_bytes=24 * GIB, source="catalog")
            for name in devices
        ],
        cells=[
            FitCell(optimizer=optimizer, device=device, answer=make_answer("batch_size", value, method="predicted"))
            if value is not None
            else FitCell(optimizer=optimizer, device=device, reason="it failed")
            for optimizer, device, value in cells
        ],
        evaluations=Evaluations(predicted=4),
    )


def test_the_matrix_has_a_cell_for_every_pair() -> None:
    fit = make_fit(("sm3", "rtx-4090", 20), ("sm3", "24GiB", 10), ("a<b", "rtx-4090", 0), ("a<b", "24GiB", None))
    text, svg = draw_matrix(fit)
    root = ElementTree.fromstring(svg)
    written = [element.text for element in root.iter(f"{SVG}text")]
    assert {"sm3", "a<b", "rtx-4090", "24GiB", "24.0 GiB", "20", "10"} <= set(written)
    assert "a<b: rtx-4090 none, 24GiB -." in text
    shades = [float(rect.get("fill-opacity") or 0) for rect in root.iter(f"{SVG}rect") if rect.get("fill-opacity")]
    assert shades[0] > shades[1] > 0
    assert svg.count("curve line vermillion") == 2
    assert draw_matrix(FitReport.model_validate_json(fit.to_json())) == (text, svg)
