"""The formats of a gate's report. Each format is a function that turns the report into text."""

from __future__ import annotations

from collections.abc import Callable

from memprof.gate.formats.benchmark import to_benchmark
from memprof.gate.formats.github import to_annotations
from memprof.gate.formats.junit import to_junit
from memprof.gate.formats.markdown import to_markdown
from memprof.gate.report import Report

FORMATS: dict[str, Callable[[Report], str]] = {
    "json": Report.to_json,
    "junit": to_junit,
    "github": to_annotations,
    "markdown": to_markdown,
    "gha-benchmark": to_benchmark,
}
