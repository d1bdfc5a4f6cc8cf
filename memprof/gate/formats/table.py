"""Prints the report on a terminal: a row for each check, then the problems in words, and last what to do."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from memprof.documents.wording import made_where
from memprof.gate.baseline import BaselineChange
from memprof.gate.metrics import METRICS
from memprof.gate.report import Report, summary
from memprof.gate.verdict import Verdict, Weight, metric_of
from memprof.gate.wording import details, headline, mark, moved, share, subject
from memprof.report.render.terminal import render_words
from memprof.report.text_table import Table

_COLOURS: dict[Weight, str] = {"error": "bold red", "warning": "yellow", "note": "cyan", "ok": "green"}
_TITLES = ("verdict", "budget/optimizer figure", "value", "limit", "change")
_NUMBERS = ("value", "limit", "change")


def render(report: Report, console: Console) -> None:
    """Print a report on the console."""
    console.print(Text(_heading(report), style="bold"))
    console.print()
    if report.verdicts:
        render_words(_table(report.verdicts), console)
        console.print()
    _print_notes(report, console)
    told: set[tuple[str, ...]] = set()
    for verdict in (*report.failures, *report.warnings):
        _print_verdict(verdict, console, told)
    if report.updated:
        render_changes(report.changes, report.baseline or "the baseline", console)
    console.print(Text(summary(report), style=_COLOURS["error" if report.failures else "ok"]))
    for line in _ending(report):
        console.print(Text(line), soft_wrap=True)


def render_changes(changes: Sequence[BaselineChange], name: str, console: Console) -> None:
    """Print the changes of an update, one line each, under the name of the baseline."""
    console.print(Text(f"{name}: {f'{len(changes)} changes' if changes else 'nothing moved'}", style="bold"))
    for one in changes:
        console.print(Text(f"  {_changed(one)}"), soft_wrap=True)
    console.print()


def _heading(report: Report) -> str:
    devices = sorted({made_where(one.source, one.device) for one in report.figures})
    entries = len({verdict.entry for verdict in report.verdicts})
    parts = [f"{entries} {'budget' if entries == 1 else 'budgets'} of {report.config}", *devices]
    return " · ".join([*parts, f"baseline {report.baseline}" if report.baseline else "no baseline"])


def _table(verdicts: Sequence[Verdict]) -> Table:
    rows = tuple(
        (
            mark(verdict),
            f"{subject(verdict)} {verdict.metric or 'run'}",
            _size(verdict, verdict.value),
            _size(verdict, verdict.bound) if verdict.bound is not None else verdict.limit or "-",
            share(metric_of(verdict), verdict.base, verdict.value),
        )
        for verdict in verdicts
    )
    right = tuple(title in _NUMBERS for title in _TITLES)
    return Table(titles=_TITLES, rows=rows, ranks=tuple(range(len(_TITLES))), right=right)


def _size(verdict: Verdict, value: int | None) -> str:
    metric = metric_of(verdict)
    return metric.text(value) if metric is not None else "-"


def _print_verdict(verdict: Verdict, console: Console, told: set[tuple[str, ...]]) -> None:
    """Print a verdict in words. Details in `told` were printed before for the same figure and are not repeated."""
    grid = Grid.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    sign = "x" if verdict.weight == "error" else "!"
    grid.add_row(Text(sign, style=_COLOURS[verdict.weight]), Text(headline(verdict)))
    for word, sentence in details(verdict):
        if (verdict.entry, verdict.optimizer, verdict.metric or "", word, sentence) in told:
            continue
        told.add((verdict.entry, verdict.optimizer, verdict.metric or "", word, sentence))
        grid.add_row(Text(""), Text(f"{word}: {sentence}"))
    console.print(grid)
    console.print()


def _print_notes(report: Report, console: Console) -> None:
    notes = list(dict.fromkeys(note for one in report.figures for note in one.notes))
    for note in notes:
        console.print(Text(f"- {note}"))
    if notes:
        console.print()


def _changed(one: BaselineChange) -> str:
    name = f"{one.entry}/{one.optimizer}"
    if one.metric is None:
        return f"{name}: {one.remark or one.what}"
    metric = METRICS[one.metric]
    if one.old is None or one.new is None:
        return f"{name} {one.metric}: {metric.text(one.old)} -> {metric.text(one.new)}"
    return f"{name} {one.metric}: {metric.text(one.old)} -> {metric.text(one.new)}, {moved(metric, one.old, one.new)}"


def _ending(report: Report) -> list[str]:
    """Return the advice at the end; the command that accepts the figures comes last."""
    if not report.failures and not any(verdict.status == "improved" for verdict in report.warnings):
        return []
    entries = dict.fromkeys(v.entry for v in report.failures if v.status == "exceeded" and v.base is None)
    places = [report.places[entry] for entry in entries if entry in report.places]
    where = ", ".join(f"{place.file}:{place.line}" if place.line else place.file for place in places)
    raising = [f"To raise a ceiling, edit {where}."] if where else []
    if report.updated or not report.acceptable:
        return raising
    return [*raising, "To accept these figures as the baseline:", f"  {report.accept}"]
