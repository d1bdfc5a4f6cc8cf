"""Renders a comparison as Markdown for GitHub. The same document always gives the same bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote

from memprof.documents.comparison import Comparison
from memprof.report.blocks import Block, Bullets, Command, FigureReference, Folded
from memprof.report.content import sections
from memprof.report.content.columns import main_table
from memprof.report.content.outline import Section, outline
from memprof.report.content.summary import summarize
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
        f"# Training memory of {escape(comparison.name)}",
        _headline(comparison),
        render_table(main_table(comparison)),
        _list(sections.problems(comparison)),
        *(_section(section, drawn) for section in outline(comparison)),
        link_to(document) if document else "",
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


def _section(section: Section, drawn: dict[str, str]) -> str:
    """Return a heading and what stands below."""
    parts = [f"## {section.title}", *(_block(block, drawn) for block in section.blocks)]
    return "\n\n".join(part for part in parts if part)


def _block(block: Block, drawn: dict[str, str]) -> str:
    """Return a block; nothing for a figure that is not drawn."""
    if isinstance(block, Table):
        return render_table(block)
    if isinstance(block, Bullets):
        return _list(block.lines)
    if isinstance(block, FigureReference):
        return drawn.get(block.name, "")
    if isinstance(block, Folded):
        return f"<details><summary>{block.summary}</summary>\n\n{render_table(block.table)}\n\n</details>"
    return _fenced(block.text) if isinstance(block, Command) else escape(block.text)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def _fenced(command: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{command}\n{fence}"
