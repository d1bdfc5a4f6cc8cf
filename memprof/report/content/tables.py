"""The detailed tables of a report: every fit, every predicted figure, and the recordings of the allocator."""

from __future__ import annotations

from collections.abc import Iterable

from memprof.documents.comparison import Comparison, FitAnswer, Run
from memprof.documents.confidence import Deviation
from memprof.documents.wording import category_title, phase_words
from memprof.report.content import sections
from memprof.report.content.columns import fit_text
from memprof.report.content.validation import error_text
from memprof.report.text_table import Table
from memprof.units import ABSENT, format_size


def fit_table(comparison: Comparison) -> Table:
    """Return a table with a row for each largest value: its peak, and the peak that the next value would need."""
    rows = (_fit_row(run, answer) for run, answer in sections.fit_answers(comparison))
    words = ("optimizer", "knob", "set by", "tried")
    return _table(("optimizer", "knob", "largest", "peak there", "set by", "next", "needs", "tried"), rows, words)


def validation_table(comparison: Comparison) -> Table:
    """Return a table with a row for each figure that was both predicted and measured, with the signed error."""
    rows = (
        (
            run.optimizer.spec,
            _what(one),
            format_size(one.predicted_bytes),
            format_size(one.measured_bytes),
            error_text(one),
        )
        for run in comparison.runs
        if run.validation is not None
        for one in run.validation.deviations
    )
    return _table(("optimizer", "figure", "predicted", "measured", "error"), rows, ("optimizer", "figure"))


def history_remarks(comparison: Comparison) -> list[str]:
    """Return a sentence for each run on a GPU: what its allocator recorded, and whether the replay agrees with it."""
    remarks = []
    for run in comparison.runs:
        found = run.allocator_history
        if found is not None:
            reserved, loose = format_size(found.reserved_bytes), format_size(found.fragmentation_bytes)
            replay = {True: "; replayed exactly", False: "; its replay differs", None: ""}[found.exact]
            text = f"{found.events} allocations and frees, {reserved} reserved, {loose} of it not allocated{replay}"
            remarks.append(f"{run.optimizer.spec}: {text}")
    return remarks


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]], words: tuple[str, ...]) -> Table:
    return Table(
        titles=titles,
        rows=tuple(rows),
        ranks=tuple(range(len(titles))),
        right=tuple(title not in words for title in titles),
    )


def _fit_row(run: Run, answer: FitAnswer) -> tuple[str, ...]:
    tried = (
        f"{point.value}: {'out of memory' if point.peak_bytes is None else format_size(point.peak_bytes)}"
        for point in answer.points
    )
    return (
        run.optimizer.spec,
        answer.knob,
        fit_text(answer),
        format_size(answer.peak_bytes),
        phase_words(answer.phase) if answer.phase else ABSENT,
        ABSENT if answer.next_value is None else str(answer.next_value),
        format_size(answer.next_peak_bytes),
        ", ".join(tried) or ABSENT,
    )


def _what(one: Deviation) -> str:
    if one.category is not None:
        return f"{category_title(one.category)} at the peak"
    return f"{one.layer}, {one.phase}" if one.phase is not None else one.layer
