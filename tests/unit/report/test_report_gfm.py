"""The Markdown as a renderer of GitHub's dialect sees it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from memprof.documents.comparison import Comparison
from memprof.report.content.columns import main_table
from memprof.report.render.github import COMMENT_BYTES, MARKER, to_comment, to_step_summary, trim
from memprof.report.render.markdown import image, to_markdown
from tests.comparisons import COUNT, make_broken_run, make_comparison, make_run

NAMES = [
    "a|b",
    "`x` ``y``",
    "<b>&amp;",
    "[x](y)",
    "![i](j)",
    "*x* _y_ __z__",
    "~~x~~",
    "a\\|b\\",
    "😀 emoji",
    "<!-- c -->",
]


def parse(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def everything(tokens: Iterable[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from everything(token.children or [])


def rows(text: str) -> list[list[str]]:
    """The texts of all table cells, as they are read."""
    found: list[list[str]] = []
    tokens = parse(text)
    for before, token in itertools.pairwise(tokens):
        if token.type == "tr_open":
            found.append([])
        elif before.type in ("td_open", "th_open"):
            found[-1].append("".join(child.content for child in token.children or []))
    return found


def make_named(names: list[str]) -> Comparison:
    runs = [make_run(name, 8 * COUNT) for name in names[:-1]]
    return make_comparison(*runs, make_broken_run(names[-1], "oom", "<i>full</i>"), reference=None)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_read_as_they_were_written(name: str) -> None:
    comparison = make_named([name, "adam", "sgd"])
    table = main_table(comparison)
    found = rows(to_markdown(comparison))
    assert found[0] == list(table.titles)
    assert found[1 : 1 + len(table.rows)] == [list(row) for row in table.rows]


@pytest.mark.parametrize("render", [to_markdown, to_comment, to_step_summary])
def test_no_html_and_no_markup_comes_from_names(render: object) -> None:
    text = render(make_named(NAMES))  # type: ignore[operator]
    tokens = list(everything(parse(text)))
    allowed = (MARKER, "<details>", "</details>", "<summary>", "</summary>")
    html = [token.content for token in tokens if token.type in ("html_block", "html_inline")]
    assert all(any(mark in piece for mark in allowed) for piece in html)
    assert not {"image", "s_open", "link_open"} & {token.type for token in tokens}


def test_figures_are_images_with_words() -> None:
    text = to_markdown(make_comparison(), {"peak": image("a b(1)_peak.svg", "who [holds] *it*: sm3")})
    images = [token for token in everything(parse(text)) if token.type == "image"]
    assert [token.attrGet("src") for token in images] == ["a%20b%281%29_peak.svg"]
    assert images[0].content.replace("\\", "") == "who [holds] *it*: sm3"


def test_the_longest_text_that_fits_is_taken() -> None:
    many = make_comparison(*[make_run(f"optimizer_{number}", 8 * COUNT) for number in range(1200)])
    few = make_comparison()
    assert "<details>" in to_comment(few)
    assert "PPPP" in to_comment(few)
    comment = to_comment(many)
    assert len(comment.encode()) <= COMMENT_BYTES
    assert comment.startswith(MARKER)
    assert "… and 1180 more" in comment
    assert len(to_step_summary(many).encode()) <= 1024 * 1024
    assert "optimizer_1199" in to_step_summary(many)


def test_a_text_too_long_on_every_rung_is_cut() -> None:
    cut = trim(["ä" * 1000, "ö" * 500], 100)
    assert len(cut.encode()) <= 100
    assert cut.startswith("ööö")
    assert cut.endswith("(cut off: too long)\n")
    assert trim(["long", "l"], 3) == "l"
