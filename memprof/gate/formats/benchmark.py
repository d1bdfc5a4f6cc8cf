"""The figures for github-action-benchmark, as its `customSmallerIsBetter` reads them.

A list of objects with `name`, `unit`, `value` and `extra` (benchmark-action/github-action-benchmark, README of 1.22).
Figures of which more is better are left out: the format has one direction for the whole file.
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
        if not METRICS[name].lower
    ]
