"""Renders a comparison as a comment on a pull request or as a step summary, within GitHub's size limits.

Bars are drawn with letters, because GitHub removes images that are embedded as data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from memprof.documents.comparison import Comparison
from memprof.documents.wording import category_title
from memprof.report.content import sections
from memprof.report.content.columns import main_table
from memprof.report.content.levers import levers
from memprof.report.content.summary import summarize
from memprof.report.render.markdown import escape, render_table
from memprof.report.render.terminal import bar, category_letter
from memprof.report.text_table import Table
from memprof.units import format_size

COMMENT_BYTES = 60_000
SUMMARY_BYTES = 1_000_000


def trim(versions: Iterable[str], limit_bytes: int) -> str:
    """Return the first version of a text that is within a size limit, or else the last version, cut off.

    Args:
        versions: The same text, shorter in each version.
        limit_bytes: The largest size, in bytes of UTF-8.
    """
    text = ""
    for text in versions:
        if len(text.encode("utf-8", "replace")) <= limit_bytes:
            return text
    mark = "\n\n(cut off: too long)\n"
    return text.encode("utf-8", "replace")[: limit_bytes - len(mark)].decode("utf-8", "ignore") + mark


# A workflow finds the comment that it replaces by this line.
MARKER = "<!-- memprof report -->"
_BAR = 40
_FEW = 20


def to_comment(comparison: Comparison) -> str:
    """Return the Markdown of a comment on a pull request."""
    return trim(_versions(comparison), COMMENT_BYTES)


def to_step_summary(comparison: Comparison) -> str:
    """Return the Markdown to append to the file `$GITHUB_STEP_SUMMARY`."""
    return trim(_versions(comparison), SUMMARY_BYTES)


def _versions(comparison: Comparison) -> Iterator[str]:
    """Yield the whole text, then without the details, then with only a few rows, and last only the headline."""
    table = main_table(comparison)
    head = [MARKER, f"### Training memory of {escape(comparison.name)}", _headline(comparison)]
    broken = _list(sections.problems(comparison))
    bars = text_bars(comparison)
    advice = _list(levers(comparison))
    yield _join(*head, render_table(table), broken, bars, advice, _details(comparison))
    yield _join(*head, render_table(table), broken, bars, advice)
    yield _join(*head, render_table(_first(table)), _more(table))
    yield _join(*head, f"{len(comparison.runs)} optimizers; the table is too long to be shown here.")


def text_bars(comparison: Comparison) -> str:
    """Return a code block with a bar of letters for each optimizer; empty if no run has a breakdown."""
    shown = sections.breakdowns(comparison)
    if not shown:
        return ""
    names = sections.present_categories(comparison)
    largest = max(found.total_bytes for _, found in shown)
    width = max(len(run.optimizer.spec) for run, _ in shown)
    lines = []
    for run, found in shown:
        cells = round(_BAR * found.total_bytes / largest) if largest else 0
        drawn = bar({name: found.by_category.get(name, 0) for name in names}, found.total_bytes, cells).plain
        lines.append(
            f"{' '.join(run.optimizer.spec.split()):{width}}  {drawn:{_BAR}}  {format_size(found.total_bytes)}"
        )
    legend = "   ".join(f"{category_letter(name)} {category_title(name)}" for name in names)
    fence = "`" * max(3, 1 + max((len(run.optimizer.spec) for run, _ in shown if "`" in run.optimizer.spec), default=0))
    return "\n".join([fence, *lines, "", legend, fence])


def _headline(comparison: Comparison) -> str:
    return f"**{escape(' '.join(summarize(comparison)))}**\n\n{escape(sections.heading(comparison))}"


def _details(comparison: Comparison) -> str:
    tables = [render_table(sections.category_table(comparison)) if sections.breakdowns(comparison) else ""]
    tables += [render_table(sections.phase_table(comparison)), _list(sections.notes(comparison))]
    inner = "\n\n".join(part for part in tables if part)
    return f"<details><summary>By category, by phase, caveats</summary>\n\n{inner}\n\n</details>" if inner else ""


def _first(table: Table) -> Table:
    return Table(titles=table.titles, rows=table.rows[:_FEW], ranks=table.ranks, right=table.right)


def _more(table: Table) -> str:
    left = len(table.rows) - _FEW
    return f"… and {left} more" if left > 0 else ""


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def _join(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"
