"""Writes a trace as JSON for Perfetto (https://ui.perfetto.dev) and chrome://tracing.

The file holds phases, operators and counters in the JSON object form of the Trace Event Format. A trace has no clock,
so the time of an event is its number in microseconds. The counters hold the bytes of each category, and the bytes
allocated and reserved.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from memprof.trace.events import Trace

_PHASES, _OPERATORS = 1, 2


def save_perfetto(trace: Trace, path: Path, name: str, reserved: Sequence[int] = ()) -> None:
    """Write a trace as JSON.

    Args:
        trace: the events of a trial.
        path: the path of the file.
        name: the name of the process that the viewer shows.
        reserved: the bytes reserved after each event; empty if they were not recorded.
    """
    document = {"displayTimeUnit": "ms", "traceEvents": list(_events(trace, name, reserved))}
    path.write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")


def _events(trace: Trace, name: str, reserved: Sequence[int]) -> Iterator[dict[str, Any]]:
    yield _named("process_name", 0, name)
    yield _named("thread_name", _PHASES, "phases")
    yield _named("thread_name", _OPERATORS, "operators")
    ends = [span.start for span in trace.spans[1:]] + [len(trace.events)]
    for span, end in zip(trace.spans, ends, strict=True):
        yield _slice(span.phase, _PHASES, span.start, end, {"step": span.step})
    yield from _operators(trace)
    yield from _counters(trace, reserved)


def _operators(trace: Trace) -> Iterator[dict[str, Any]]:
    """Yield a slice for each run of consecutive allocations that one operator makes for one module."""
    made = [(i, trace.blocks[event.block]) for i, event in enumerate(trace.events) if event.size > 0]
    for (operator, module), run in groupby(made, key=lambda one: (one[1].operator, one[1].module)):
        taken = list(run)
        if operator:
            yield _slice(operator, _OPERATORS, taken[0][0], taken[-1][0] + 1, {"module": module})


def _counters(trace: Trace, reserved: Sequence[int]) -> Iterator[dict[str, Any]]:
    held: Counter[str] = Counter()
    total = 0
    for time, (number, size) in enumerate(trace.events):
        if not size:
            continue
        category = trace.blocks[number].category
        held[category] += size
        total += size
        yield _counter(category, time, held[category])
        yield _counter("allocated", time, total)
        if reserved and (time == 0 or reserved[time] != reserved[time - 1]):
            yield _counter("reserved", time, reserved[time])


def _named(kind: str, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": 1, "tid": thread, "name": kind, "args": {"name": name}}


def _slice(name: str, thread: int, start: int, end: int, details: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "X", "pid": 1, "tid": thread, "name": name, "ts": start, "dur": end - start, "args": details}


def _counter(name: str, time: int, size: int) -> dict[str, Any]:
    return {"ph": "C", "pid": 1, "name": name, "ts": time, "args": {"bytes": size}}
