"""The HTML page in a real headless Chromium; skipped where there is none (`apt-get install chromium`)."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memprof.documents.comparison import Comparison, FitPoint
from memprof.report.render.html import to_page
from memprof.trace.events import Block, Event, PhaseSpan, Trace
from memprof.trace.timeline import make_timeline
from memprof.units import format_size
from tests.browser import Browser, find_browser
from tests.comparisons import COUNT, GIB, make_answer, make_broken_run, make_comparison, make_run
from tests.unit.report.test_figures import make_timeline as make_small_timeline

EVIL = "</script><img src=x onerror=alert(1)> `|` [b] 🔥"
needs_browser = pytest.mark.skipif(find_browser() is None, reason="no Chromium on this machine")


def make_rich() -> Comparison:
    points = [FitPoint(value=1, peak_bytes=GIB), FitPoint(value=2, peak_bytes=2 * GIB)]
    answer = make_answer("batch_size", 24, peak_bytes=24 * GIB, next_value=25, next_peak_bytes=25 * GIB, points=points)
    fit = {"batch_size": answer}
    return make_comparison(
        make_run("adam", 8 * COUNT, timeline=make_small_timeline(2 * GIB, 3 * GIB), fit=fit),
        make_run(EVIL, 0, timeline=make_small_timeline(GIB), fit=fit),
        make_broken_run("sgd", "oom", "out of memory in the build"),
    )


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = to_page(make_rich())
    assert not re.findall(r"""(?:src|href)=["']?(?!x)""", page)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    assert page == to_page(Comparison.model_validate_json(make_rich().to_json()))


def test_the_page_holds_every_table_and_no_markup_of_the_user() -> None:
    page = to_page(make_rich())
    assert "<img" not in page
    assert page.count("</script>") == 2
    for title in ("What would lower the peak", "Peak within each phase", "Largest batch and model", "Environment"):
        assert f"<h2>{title}</h2>" in page
    assert "sgd: out of memory in the build" in page


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find_browser()
    assert executable is not None
    with Browser(executable, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Browser]:
    file = tmp_path / "report.html"
    file.write_text(to_page(make_rich()), encoding="utf-8")
    browser.complaints.clear()
    browser.open(file)
    yield browser
    assert browser.complaints == []


def text(page: Browser, selector: str) -> str:
    return str(page.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))


def put(page: Browser, field: str, value: str, event: str) -> None:
    """Give a field a value (an expression) as a user would."""
    look = f"const field = document.getElementById('{field}'); field.value = {value};"
    page.evaluate(f"(() => {{ {look} field.dispatchEvent(new Event('{event}')); }})()")


@needs_browser
def test_pointing_at_a_curve_says_what_is_alive(page: Browser) -> None:
    assert text(page, "#alive") == "Nothing is pointed at."
    page.mouse("Moved", *page.place(".panel svg", across=0.43))
    assert "2.00 GiB allocated, reserved 3.00 GiB" in text(page, "#alive")
    assert "backward, after 40 of 100 allocations and frees" in text(page, "#alive")
    assert text(page, "#alive .categories").split("\n")[0].split("\t") == ["parameters", "512.00 MiB", "25 %"]
    assert text(page, "#alive .owners").split("\n")[0].split("\t") == ["blocks.*.up aten::mm", "1.50 GiB", "75 %"]


@needs_browser
def test_the_arrow_keys_move_the_cursor(page: Browser) -> None:
    page.evaluate("document.querySelector('.panel svg').focus()")
    for _ in range(3):
        page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight")
    assert "optimizer, after 80 of 100" in text(page, "#alive")
    page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft")
    assert "after 40 of 100" in text(page, "#alive")


@needs_browser
def test_dragging_enlarges_a_stretch_of_every_panel(page: Browser) -> None:
    left, right = page.place(".panel svg", across=0.3), page.place(".panel svg", across=0.6)
    page.mouse("Pressed", *left, 1)
    page.mouse("Moved", *right, 1)
    assert page.evaluate("document.querySelectorAll('.panel .brush').length") == 1
    page.mouse("Released", *right)
    view = page.evaluate("[view.from, view.to]")
    assert 20 < view[0] < 35 < 50 < view[1] < 65
    page.click("#zoom-reset")
    assert page.evaluate("[view.from, view.to]") == [0, 100]
    assert page.evaluate("document.getElementById('zoom-reset').disabled")


@needs_browser
def test_an_optimizer_can_be_left_out(page: Browser) -> None:
    shown = "[...document.querySelectorAll('.panel')].filter((panel) => !panel.hidden).length"
    assert page.evaluate(shown) == 2
    page.click("#toggles input")
    assert page.evaluate(shown) == 1
    page.click("#toggles input")
    assert page.evaluate(shown) == 2


@needs_browser
def test_the_slider_moves_the_largest_batch(page: Browser) -> None:
    largest = "[...document.querySelectorAll('.largest')].map((cell) => cell.textContent)"
    assert page.evaluate(largest) == ["~24", "~24", "-"]
    put(page, "capacity-slider", "6 / 48 * field.max", "input")
    assert text(page, "#capacity-value") == "6.00 GiB"
    assert page.evaluate(largest) == ["~6", "~6", "-"]
    put(page, "capacity-slider", "1 / 48 * field.max", "input")
    assert page.evaluate(largest) == ["~1", "~1", "-"]
    rows = page.evaluate("[...document.querySelectorAll('#capacity-rows tr')].map((row) => row.cells[2].textContent)")
    assert rows[0].startswith("no, ")
    assert rows[2] == "out of memory in the build"
    page.click("#capacity-reset")
    assert page.evaluate(largest) == ["~24", "~24", "-"]


@needs_browser
def test_the_tree_opens_module_by_module(page: Browser) -> None:
    comparison = make_rich()
    assert comparison.runs[0].breakdown is not None
    total = format_size(comparison.runs[0].breakdown.total_bytes)
    assert text(page, "#tree summary").split("\n")[:2] == ["whole peak", total]
    assert page.evaluate("document.querySelectorAll('#tree details details').length") == 1
    page.click("#tree details details summary")
    page.evaluate("new Promise((done) => setTimeout(done, 100))")  # a branch is filled by an event of its own
    assert "wte" in text(page, "#tree details details")
    put(page, "tree-run", "1", "change")
    assert text(page, "#tree summary") != total


@needs_browser
def test_sizes_read_as_in_the_tables(page: Browser) -> None:
    sizes = [0, 1, 1023, 1024, 1536, 2**20 - 1, 2**30, 23 * 2**30 + 12345, 2**40, 5 * 2**45]
    assert page.evaluate(f"{sizes}.map(formatSize)") == [format_size(size) for size in sizes]


@needs_browser
def test_what_users_named_stays_text(page: Browser) -> None:
    assert page.evaluate("document.images.length") == 0
    assert page.evaluate("document.querySelectorAll('.panel h3')[1].textContent") == EVIL


@needs_browser
def test_a_comparison_without_figures_opens_too(browser: Browser, tmp_path: Path) -> None:
    for number, comparison in enumerate((make_comparison(runs=[]), make_comparison(make_broken_run("a", "oom", "b")))):
        file = tmp_path / f"{number}.html"
        file.write_text(to_page(comparison), encoding="utf-8")
        browser.complaints.clear()
        browser.open(file)
        assert browser.complaints == []
        assert browser.evaluate("document.getElementById('timelines').hidden")


@needs_browser
def test_a_long_trace_opens_in_two_seconds_with_its_peak(browser: Browser, tmp_path: Path) -> None:
    trace = Trace(spans=[PhaseSpan(0, 1, "forward"), PhaseSpan(100_000, 1, "backward")])
    for number in range(100_000):
        size = 70 * GIB if number == 61_803 else 10**6 + number
        trace.blocks.append(
            Block(size, "forward", "aten::mm", f"layers.{number % 80}.w{number % 7}", category="activations")
        )
        trace.events += [Event(number, size), Event(number, -size)]
    run = make_run("adam", 8 * COUNT, timeline=make_timeline(trace))
    file = tmp_path / "long.html"
    file.write_text(to_page(make_comparison(*[run] * 6)), encoding="utf-8")
    began = time.perf_counter()
    browser.open(file)
    browser.evaluate("document.querySelectorAll('.panel').length")
    print(f"\nopened in {time.perf_counter() - began:.2f} s, {file.stat().st_size} bytes")
    assert browser.evaluate("Math.max(...data.runs[0].timeline.allocated)") == 70 * GIB
    assert browser.evaluate("document.querySelectorAll('.panel path').length") > 6
