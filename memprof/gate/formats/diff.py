"""Shows the difference between two comparisons, on a terminal and in Markdown."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from memprof.gate.diff import Difference, FigureChange, RunChange
from memprof.gate.metrics import METRICS
from memprof.gate.wording import share
from memprof.report.render.markdown import escape, render_table
from memprof.report.render.terminal import render_words
from memprof.report.text_table import Table

_TITLES = ("optimizer", "figure", "old", "new", "change", "")


def render(difference: Difference, everything: bool, console: Console) -> None:
    """Print a difference on the terminal.

    Args:
        difference: The difference.
        everything: Whether the table also has the figures that did not change.
        console: The console to print on.
    """
    console.print(Text(_heading(difference), style="bold"))
    table = _table(difference, everything)
    if table.rows:
        console.print()
        render_words(table, console)
    for run in difference.runs:
        sentences = _words(run)
        if sentences:
            console.print()
            console.print(Text(run.optimizer, style="bold"))
            for sentence in sentences:
                console.print(Text(f"  {sentence}"))


def to_markdown(difference: Difference, everything: bool) -> str:
    """Return a difference in GitHub's Markdown. `everything` includes the figures that did not change."""
    parts = [f"## {escape(_heading(difference))}", render_table(_table(difference, everything))]
    for run in difference.runs:
        sentences = _words(run)
        if sentences:
            parts.append("\n".join([f"**{escape(run.optimizer)}**", "", *(f"- {escape(one)}" for one in sentences)]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(difference: Difference) -> str:
    return f"{difference.old} -> {difference.new}: {_verdict(difference)}"


def _verdict(difference: Difference) -> str:
    outcomes = [one.outcome for run in difference.runs for one in run.figures]
    worse, better = outcomes.count("worse"), outcomes.count("better")
    if not worse and not better:
        return "no figure moved beyond its noise"
    return ", ".join(f"{count} {word}" for count, word in ((worse, "worse"), (better, "better")) if count)


def _table(difference: Difference, everything: bool) -> Table:
    rows = [
        (run.optimizer, *_cells(one))
        for run in difference.runs
        for one in run.figures
        if everything or (run.old_status and run.new_status and one.outcome not in ("same", "within-noise"))
    ]
    right = tuple(title in ("old", "new", "change") for title in _TITLES)
    return Table(titles=_TITLES, rows=tuple(rows), ranks=tuple(range(len(_TITLES))), right=right)


def _cells(one: FigureChange) -> tuple[str, ...]:
    metric = METRICS[one.metric]
    words = {"same": "", "within-noise": "noise", "only-old": "gone", "only-new": "new"}
    return (
        one.metric,
        metric.text(one.old),
        metric.text(one.new),
        share(metric, one.old, one.new),
        words.get(one.outcome, one.outcome),
    )


def _words(run: RunChange) -> list[str]:
    """Return the phrases about a run: which comparison lacks it, or how its status changed and why its figures did."""
    if run.old_status is None or run.new_status is None:
        return ["only in the old comparison" if run.new_status is None else "only in the new comparison"]
    ended = [f"it was {run.old_status} and is {run.new_status}"] if run.old_status != run.new_status else []
    return [*ended, *run.why]
