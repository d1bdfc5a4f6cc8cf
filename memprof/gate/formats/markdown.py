"""Writes the report in GitHub's Markdown, for the step summary and for a comment that another tool posts.

If the report is too long for a comment, shorter and shorter versions are tried. Every version keeps the hidden marker,
by which the comment of the last push is found and replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memprof.documents.wording import made_where
from memprof.gate.report import Report, summary
from memprof.gate.verdict import Verdict, counts
from memprof.gate.wording import bound, change, details, figure, headline, mark
from memprof.report.render.github import COMMENT_BYTES, trim
from memprof.report.render.markdown import escape, render_table
from memprof.report.text_table import Table

MARKER = "<!-- memprof-gate -->"
_SIGNS = {"error": "❌", "warning": "⚠️", "note": "🆕", "ok": "✅"}
_TITLES = ("", "budget", "optimizer", "figure", "value", "limit", "against the baseline")


def to_markdown(report: Report) -> str:
    """Return the fullest version of the report that a comment can hold."""
    return trim(_versions(report), COMMENT_BYTES)


def _versions(report: Report) -> Iterator[str]:
    """Yield shorter and shorter versions.

    The first has everything, the second leaves out passed checks, the third leaves out details, and each further one
    has half as many rows.
    """
    bad = [verdict for verdict in report.verdicts if verdict.weight != "ok"]
    yield _compose(report, report.verdicts, bad)
    yield _compose(report, bad, bad)
    yield _compose(report, bad, [])
    worst = sorted(bad, key=lambda verdict: verdict.weight != "error")
    rows = len(worst)
    while rows:
        rows //= 2
        yield _compose(report, worst[:rows], [])
    yield f"{MARKER}\n{_title(report)}\n"


def _compose(report: Report, rows: Sequence[Verdict], detailed: Sequence[Verdict]) -> str:
    left_out = len(report.verdicts) - len(rows)
    parts = [
        f"{MARKER}\n{_title(report)}",
        escape(f"{summary(report)}. {_sources(report)}"),
        _changes(report),
        "\n".join(_entry(verdict) for verdict in detailed),
        render_table(_table(rows)),
        f"{left_out} more checks are not shown." if left_out else "",
        _accept(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(report: Report) -> str:
    if report.failures:
        return f"## {_SIGNS['error']} The memory budget is exceeded"
    number = counts(report.verdicts)
    return f"## {_SIGNS['warning'] if number['warning'] else _SIGNS['ok']} The memory budget holds"


def _sources(report: Report) -> str:
    made = sorted({(one.source, one.device) for one in report.figures})
    words = " and ".join(made_where(source, device) for source, device in made)
    return f"{words[:1].upper()}{words[1:]}." if words else ""


def _entry(verdict: Verdict) -> str:
    lines = [f"- {_SIGNS[verdict.weight]} **{escape(headline(verdict))}**"]
    lines += [f"  - {word}: {escape(sentence)}" for word, sentence in details(verdict)]
    return "\n".join(lines)


def _table(verdicts: Sequence[Verdict]) -> Table:
    rows = (
        (
            _SIGNS[verdict.weight],
            verdict.entry,
            verdict.optimizer,
            verdict.metric or mark(verdict),
            figure(verdict),
            bound(verdict),
            change(verdict),
        )
        for verdict in verdicts
    )
    right = tuple(title in ("value", "against the baseline") for title in _TITLES)
    return Table(titles=_TITLES, rows=tuple(rows), ranks=tuple(range(len(_TITLES))), right=right)


def _changes(report: Report) -> str:
    if not report.updated:
        return ""
    return f"The baseline was updated: {len(report.changes)} changes." if report.changes else "The baseline stands."


def _accept(report: Report) -> str:
    if report.updated or not report.acceptable:
        return ""
    return f"To accept these figures:\n\n```sh\n{report.accept}\n```"
