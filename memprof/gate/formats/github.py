"""Writes annotations for GitHub: workflow commands that a runner turns into marks on the changed files.

The grammar and the escapes are those of actions/toolkit, packages/core/src/command.ts: `%`, CR and LF are escaped in
the message, and `:` and `,` as well in a property. GitHub shows ten annotations of each kind for a step and silently
hides the others.
"""

from __future__ import annotations

from collections.abc import Sequence

from memprof.gate.report import Report
from memprof.gate.verdict import Verdict
from memprof.gate.wording import details, headline, mark, subject

MOST = 10
_KINDS = {"error": "error", "warning": "warning", "note": "notice"}


def to_annotations(report: Report) -> str:
    """Return the annotations, at most ten of each kind. If there are more, the tenth says how many are left out."""
    lines = []
    for weight, kind in _KINDS.items():
        found = [verdict for verdict in report.verdicts if verdict.weight == weight]
        shown = found if len(found) <= MOST else found[: MOST - 1]
        lines += [_annotation(report, kind, verdict) for verdict in shown]
        if len(found) > len(shown):
            lines.append(_command(kind, {"title": "memprof gate"}, f"{len(found) - len(shown)} more; see the log"))
    return "".join(f"{line}\n" for line in lines)


def escape_message(text: str) -> str:
    """Return the text escaped for the message of a workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def escape_property(text: str) -> str:
    """Return the text escaped for a property of a workflow command."""
    return escape_message(text).replace(":", "%3A").replace(",", "%2C")


def _annotation(report: Report, kind: str, verdict: Verdict) -> str:
    place = report.places.get(verdict.entry)
    properties = {"file": place.file if place is not None else report.config}
    if place is not None and place.line is not None:
        properties["line"] = str(place.line)
    properties["title"] = f"memprof: {mark(verdict).lower()}: {subject(verdict)}"
    return _command(kind, properties, "\n".join([headline(verdict), *_below(verdict)]))


def _below(verdict: Verdict) -> Sequence[str]:
    return [f"{word}: {sentence}" for word, sentence in details(verdict)]


def _command(kind: str, properties: dict[str, str], message: str) -> str:
    given = ",".join(f"{name}={escape_property(value)}" for name, value in properties.items())
    return f"::{kind} {given}::{escape_message(message)}"
