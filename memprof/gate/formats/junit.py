"""Writes the JUnit XML that Jenkins and GitLab read: a test suite for each entry and a test case for each check."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from memprof.gate.report import Report
from memprof.gate.verdict import Verdict
from memprof.gate.wording import details, headline

# The characters that XML 1.0 does not allow, not even escaped.
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(report: Report) -> str:
    """Return the report as JUnit XML.

    A failed trial is an `error` and an exceeded limit is a `failure`. A check without a baseline is `skipped`, because
    nothing was compared. A warning passes, and its text is in `system-out`.
    """
    root = Element("testsuites", {"name": "memprof gate", **_counts(report.verdicts)})
    for entry in dict.fromkeys(verdict.entry for verdict in report.verdicts):
        verdicts = [verdict for verdict in report.verdicts if verdict.entry == entry]
        suite = SubElement(root, "testsuite", {"name": _legal(entry), **_counts(verdicts, skipped=True)})
        for verdict in verdicts:
            _case(suite, verdict)
    indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _case(suite: Element, verdict: Verdict) -> None:
    name = f"{verdict.optimizer} {verdict.metric or 'run'}"
    if verdict.metric is not None and verdict.limit is not None:
        name += f" {verdict.limit}"
    case = SubElement(suite, "testcase", {"classname": _legal(f"memprof.{verdict.entry}"), "name": _legal(name)})
    said = {"message": _legal(headline(verdict))}
    text = _legal("\n".join([headline(verdict), *(f"{word}: {sentence}" for word, sentence in details(verdict))]))
    if verdict.weight == "error":
        kind = "error" if verdict.status == "failed" else "failure"
        SubElement(case, kind, {**said, "type": verdict.status}).text = text
    elif verdict.weight == "note":
        SubElement(case, "skipped", said)
    elif verdict.weight == "warning":
        SubElement(case, "system-out").text = text


def _counts(verdicts: Sequence[Verdict], skipped: bool = False) -> dict[str, str]:
    errors = sum(verdict.weight == "error" and verdict.status == "failed" for verdict in verdicts)
    failures = sum(verdict.weight == "error" for verdict in verdicts) - errors
    found = {"tests": str(len(verdicts)), "failures": str(failures), "errors": str(errors)}
    return {**found, "skipped": str(sum(v.weight == "note" for v in verdicts))} if skipped else found


def _legal(text: str) -> str:
    return _ILLEGAL.sub("?", text)
