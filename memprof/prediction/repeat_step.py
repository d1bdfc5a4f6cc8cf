"""Appends a training step to a trace without training it, because the reserved memory may grow until the third step.

The second step makes the same allocations and frees as every later step: it finds the optimizer's state, and gradients,
a loss and outputs to replace. But its blocks lie elsewhere, because the state took memory that the first step had left
free. Only from the third step on does every step place its blocks in the same way.
"""

from __future__ import annotations

from collections import Counter

from memprof.devices.target import Target
from memprof.prediction.fake.training import FakeRun
from memprof.trace.attribution import build_trace, label_buckets
from memprof.trace.events import CACHE_EMPTIED, Event, PhaseSpan, Trace


def trace_of(fake: FakeRun, target: Target) -> Trace:
    """Return the trace of a fake training, with one more step if the device is a GPU.

    Args:
        fake: The fake training.
        target: The device.
    """
    trace = labelled_trace(fake)
    return with_repeated_step(trace) if target.kind == "cuda" else trace


def labelled_trace(fake: FakeRun) -> Trace:
    """Return the trace of a fake training, with DDP's buckets labelled.

    Args:
        fake: The fake training.
    """
    trace = build_trace(fake.entries)
    label_buckets(trace, trace, fake.buckets)
    return trace


def with_repeated_step(trace: Trace) -> Trace:
    """Return a trace whose last step is repeated once.

    The trace stays as it is if the last step does not leave the same blocks that it found, because then the next step
    would differ.

    Args:
        trace: A trace of at least two steps that begins in an empty process.
    """
    last = trace.spans[-1].step
    spans = [span for span in trace.spans if span.step == last]
    events = trace.events[spans[0].start :]
    renamed = _successors(trace, spans[0].start)
    if renamed is None:
        return trace
    blocks, repeated = list(trace.blocks), list[Event]()
    renamed[CACHE_EMPTIED] = CACHE_EMPTIED
    for number, size in events:
        if number not in renamed:  # it was allocated in the step, so the repeated step has a block of its own
            renamed[number] = len(blocks)
            blocks.append(trace.blocks[number])
        repeated.append(Event(renamed[number], size))
    shift = len(events)
    later = [PhaseSpan(span.start + shift, span.step + 1, span.phase) for span in spans]
    return Trace(blocks, trace.events + repeated, trace.spans + later, trace.operators)


def _successors(trace: Trace, start: int) -> dict[int, int] | None:
    """Return, for each older block that the step frees, the new block in its place; None if their sizes differ."""
    older = {number for number, _ in trace.events[:start]}
    events_of = Counter(number for number, _ in trace.events[start:] if number != CACHE_EMPTIED)
    freed = sorted(number for number in events_of if number in older)
    left = sorted(number for number, events in events_of.items() if number not in older and events == 1)
    if [trace.blocks[number].size for number in freed] != [trace.blocks[number].size for number in left]:
        return None
    return dict(zip(freed, left, strict=True))
