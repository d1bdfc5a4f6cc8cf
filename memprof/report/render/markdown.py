"""Renders a comparison as Markdown for GitHub. The same document always gives the same bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote

from memprof.documents.comparison import Comparison, Environment
from memprof.report.content import sections, validation
from memprof.report.content.columns import main_table
from memprof.report.content.facts import caveats, facts
from memprof.report.content.levers import levers
from memprof.report.content.ranks import TITLE, rank_remark, rank_table
from memprof.report.content.summary import summarize
from memprof.report.content.tables import fit_table, history_remarks, validation_table
from memprof.report.text_table import Table

_SPECIAL = re.compile(r"([\\`*\[\]|~])")
# An underscore inside a word is not markup and is not escaped, so that names like seq_len stay readable in the source.
_UNDERSCORE = re.compile(r"(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")


def to_markdown(comparison: Comparison, figures: dict[str, str] | None = None, document: str | None = None) -> str:
    """Return the report: the headline, tables, what would lower the peaks, caveats, the environment and the command.

    Args:
        comparison: The comparison to report.
        figures: The Markdown that shows each figure (see `image`), by the figure's name. Without it, the report has
            only tables.
        document: The path of the saved comparison relative to the report, which the report links to.
    """
    drawn = figures or {}
    parts = [
        f"# Training memory of {escape(comparison.workload.name)}",
        _headline(comparison),
        render_table(main_table(comparison)),
        _list(sections.problems(comparison)),
        *_section("Who holds the memory at the peak", drawn.get("peak", ""), _breakdown(comparison)),
        *_section(TITLE, render_table(rank_table(comparison)), escape(rank_remark(comparison))),
        *_section("What would lower the peak", _list(levers(comparison))),
        *_section("Peak within each phase", drawn.get("timeline", ""), _phases(comparison)),
        *_section("Largest batch and model", drawn.get("batch", ""), _fits(comparison)),
        *_section("Predicted against measured", _validation(comparison)),
        *_section("What the prediction rests on", _basis(comparison)),
        *_section("What the allocator recorded", _list(history_remarks(comparison))),
        *_section("Caveats", _list(caveats(comparison))),
        *_section("Environment", _list(f"{name}: {value}" for name, value in facts(comparison))),
        *_section("Reproduce", _command(comparison.environment), link_to(document) if document else ""),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def image(path: str, text: str) -> str:
    """Return the Markdown that shows an image file.

    Args:
        path: The path of the file, relative to the report.
        text: A description in words, for readers who cannot see the image.
    """
    return f"![{escape(text)}]({quote(path)})"


def link_to(document: str) -> str:
    """Return the sentence with the link to the saved document."""
    return f"Every number: [{escape(document)}]({quote(document)})"


def escape(text: str) -> str:
    """Escape a text, so that Markdown shows it as it is, on one line and also inside the cell of a table."""
    line = " ".join(text.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _UNDERSCORE.sub(r"\\_", _SPECIAL.sub(r"\\\1", line))


def render_table(table: Table) -> str:
    """Return a table in GitHub's dialect of Markdown; empty for a table without rows."""
    if not table.rows:
        return ""
    rule = ["---:" if right else "---" for right in table.right]
    rows = ([escape(cell) for cell in cells] for cells in (table.titles, *table.rows))
    head, *body = (f"| {' | '.join(cells)} |" for cells in rows)
    return "\n".join([head, f"| {' | '.join(rule)} |", *body])


def _headline(comparison: Comparison) -> str:
    size = sections.model_size(comparison)
    lines = [sections.heading(comparison), *([f"{size}; {sections.sources(comparison)}."] if size else [])]
    sentences = " ".join(summarize(comparison))
    return "\n\n".join([f"**{escape(sentences)}**", "  \n".join(escape(line) for line in lines)])


def _section(title: str, *parts: str) -> list[str]:
    """Return a heading and its parts; nothing if all parts are empty."""
    return [f"## {title}", *parts] if any(parts) else []


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def _breakdown(comparison: Comparison) -> str:
    if not sections.breakdowns(comparison):
        return ""
    categories = render_table(sections.category_table(comparison))
    modules = render_table(sections.module_table(comparison))
    return f"{categories}\n\nThe modules that hold most of it:\n\n{modules}" if modules else categories


def _phases(comparison: Comparison) -> str:
    table = render_table(sections.phase_table(comparison))
    return f"{table}\n\n\\* the phase that sets the peak of the step." if table else ""


def _fits(comparison: Comparison) -> str:
    remark = sections.fit_remark(comparison)
    return f"{escape(remark)}\n\n{render_table(fit_table(comparison))}" if remark else ""


def _validation(comparison: Comparison) -> str:
    every = render_table(validation_table(comparison))
    folded = f"<details><summary>Every figure</summary>\n\n{every}\n\n</details>" if every else ""
    errors = render_table(validation.layer_table(comparison))
    remark = "The signed error of the prediction: + is too high." if errors else ""
    parts = remark, errors, _list(validation.reasons(comparison)), folded
    return "\n\n".join(part for part in parts if part)


def _basis(comparison: Comparison) -> str:
    sentences = _list(sections.basis(comparison))
    table = render_table(sections.range_table(comparison))
    return f"{sentences}\n\n{table}" if table else sentences


def _command(environment: Environment) -> str:
    if not environment.command:
        return ""
    longest = max((len(run) for run in re.findall(r"`+", environment.command)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{environment.command}\n{fence}"
