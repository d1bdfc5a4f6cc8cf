"""Writes the figures in the format `customSmallerIsBetter` of github-action-benchmark.

The format is a list of objects with `name`, `unit`, `value` and `extra` (benchmark-action/github-action-benchmark,
README of 1.22). It has one direction for the whole file, so figures for which a larger value is better are left out.
"""

from __future__ import annotations

import json
from typing import Any

from memprof.gate.metrics import METRICS
from memprof.gate.report import Report


def to_benchmark(report: Report) -> str:
    """Return the figures of all finished runs as a JSON list."""
    return json.dumps(list(_points(report)), indent=1) + "\n"


def _points(report: Report) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{one.entry}/{one.optimizer} {name}",
            "unit": "bytes",
            "value": value,
            "extra": f"{one.source}, {one.device}, torch {one.fingerprint.torch}",
        }
        for one in report.figures
        if one.status == "ok"
        for name, value in one.values.items()
        if not METRICS[name].higher_is_better
    ]
