"""Renders a comparison as a single interactive HTML page.

The page loads nothing from elsewhere, and its content security policy forbids it to. Its parts are in the folder
`page`: small scripts in plain JavaScript, without a framework. Names that users chose get into the page as escaped text
or as JSON data, never as markup.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

from memprof.documents.comparison import CATEGORIES, Comparison, FitAnswer, Run
from memprof.documents.timeline import Timeline
from memprof.report.blocks import Block, Bullets, Command, FigureReference, Folded
from memprof.report.content import sections
from memprof.report.content.columns import fit_text, largest, main_table, varied_knob
from memprof.report.content.outline import Section, outline
from memprof.report.content.summary import summarize
from memprof.report.figures.peak import COLOURS
from memprof.report.text_table import Table

_SCRIPTS = ("page.js", "capacity.js", "timeline.js", "tree.js")


def to_page(comparison: Comparison) -> str:
    """Return the page as HTML. The same comparison always gives the same bytes."""
    size = sections.model_size(comparison)
    about = [sections.heading(comparison), *([f"{size}; {sections.sources(comparison)}"] if size else [])]
    return Template(_read("page.html")).substitute(
        title=f"Training memory of {escape(comparison.name)}",
        style=_read("page.css"),
        headline=escape(" ".join(summarize(comparison))),
        heading="<br>".join(map(escape, about)),
        table=_table(main_table(comparison)),
        now=escape(_now(comparison)),
        largest=escape(largest(varied_knob(comparison))),
        problems=_list(sections.problems(comparison), "problem"),
        sections="\n".join(map(_section, outline(comparison))),
        data=_data(comparison),
        script="\n".join(map(_read, _SCRIPTS)),
    )


def _now(comparison: Comparison) -> str:
    """Return the heading of the column that says what fits of the training that was run."""
    if comparison.workload is not None:
        return f"batch {comparison.workload.batch_size} fits"
    return f"{sections.at_knobs(comparison) or 'it'} fits"


def _read(name: str) -> str:
    return (resources.files("memprof.report") / "page" / name).read_text(encoding="utf-8")


def _section(section: Section) -> str:
    return f"<h2>{section.title}</h2>\n{''.join(map(_block, section.blocks))}"


def _block(block: Block) -> str:
    """Return a block; nothing for a figure, for which the page has its own that answer to the mouse."""
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Bullets):
        return _list(block.lines)
    if isinstance(block, FigureReference):
        return ""
    if isinstance(block, Folded):
        return f"<details><summary>{block.summary}</summary>{_table(block.table)}</details>"
    return f"<pre>{escape(block.text)}</pre>" if isinstance(block, Command) else f"<p>{escape(block.text)}</p>"


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    head = "".join(_cell("th", title, right) for title, right in zip(table.titles, table.right, strict=True))
    rows = (
        f"<tr>{''.join(_cell('td', cell, right) for cell, right in zip(row, table.right, strict=True))}</tr>"
        for row in table.rows
    )
    body = "\n".join(rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _cell(tag: str, text: str, right: bool) -> str:
    return f"<{tag}{' class=number' if right else ''}>{escape(text)}</{tag}>"


def _list(lines: Sequence[str], look: str = "") -> str:
    items = "\n".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul{f' class={look}' if look else ''}>\n{items}\n</ul>" if lines else ""


def _data(comparison: Comparison) -> str:
    """Return the JSON data for the scripts. `<` is escaped, so that no text can close the element around the data."""
    document = {
        "capacity": comparison.capacity.bytes,
        "categories": [{"name": name, "colour": COLOURS[name]} for name in CATEGORIES],
        "runs": [_run(run) for run in comparison.runs],
    }
    return json.dumps(document, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _run(run: Run) -> dict[str, Any]:
    peak, found = run.peak, run.breakdown
    answer = run.fit.batch_size if run.fit is not None else None
    modules = None
    if found is not None:
        modules = found.by_category_and_module or {"unattributed": found.by_module}
    return {
        "name": run.optimizer.spec,
        "ending": None if run.status == "ok" else sections.ending(run),
        "peak": peak and {"allocated": peak.allocated_bytes, "reserved": peak.reserved_bytes, "phase": peak.phase},
        "timeline": run.timeline and _timeline(run.timeline),
        "modules": modules,
        "points": _points(answer),
        "answer": fit_text(answer) if answer is not None else None,
    }


def _timeline(timeline: Timeline) -> dict[str, Any]:
    return {
        "n": timeline.n_events,
        "events": timeline.events,
        "allocated": timeline.allocated_bytes,
        "reserved": timeline.reserved_bytes,
        "phases": [{"phase": phase.phase, "start": phase.event} for phase in timeline.phases],
        "owners": [
            {
                "category": owner.category,
                "module": owner.module,
                "operator": owner.operator,
                "points": owner.points,
                "levels": owner.levels_bytes,
            }
            for owner in timeline.owners
        ],
    }


def _points(answer: FitAnswer | None) -> list[list[int]]:
    """Return the batch sizes whose peak is known with their peaks in bytes, the smallest batch size first."""
    if answer is None:
        return []
    known = {point.value: point.peak_bytes for point in answer.points if point.peak_bytes is not None}
    for value, size in ((answer.value, answer.peak_bytes), (answer.next_value, answer.next_peak_bytes)):
        if value and size is not None:
            known.setdefault(value, size)
    return [[value, known[value]] for value in sorted(known)]
