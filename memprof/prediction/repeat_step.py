"""One more step without training it: what the caching allocator has reserved may grow until the third step.

The second step finds the state that the first one made, and gradients, a loss and outputs to replace, as every later
step does: it makes the same allocations and frees. But the state was put into what the first step had left free, so
the blocks lie elsewhere, and only the third step's come to lie where every later one's do.
"""

from __future__ import annotations

from collections import Counter

from memprof.devices.target import Target
from memprof.prediction.fake.training import FakeRun
from memprof.trace.attribution import build_trace, label_buckets
from memprof.trace.events import CACHE_EMPTIED, Event, PhaseSpan, Trace


def trace_of(fake: FakeRun, target: Target) -> Trace:
    """Return the trace of a fake training, with one step more for a GPU."""
    trace = labelled_trace(fake)
    return with_repeated_step(trace) if target.kind == "cuda" else trace


def labelled_trace(fake: FakeRun) -> Trace:
    """Return the trace of a fake training, with DDP's buckets named."""
    trace = build_trace(fake.entries)
    label_buckets(trace, trace, fake.buckets)
    return trace


def with_repeated_step(trace: Trace) -> Trace:
    """Return a trace with its last step once more; as it was where the last step does not leave what it found.

    Args:
        trace: of two steps or more, from an empty process on.
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
        if number not in renamed:  # allocated in the step: the repeated step has a block of its own
            renamed[number] = len(blocks)
            blocks.append(trace.blocks[number])
        repeated.append(Event(renamed[number], size))
    shift = len(events)
    later = [PhaseSpan(span.start + shift, span.step + 1, span.phase) for span in spans]
    return Trace(blocks, trace.events + repeated, trace.spans + later, trace.operators)


def _successors(trace: Trace, start: int) -> dict[int, int] | None:
    """Return, for each older block that the step frees, the one that it leaves in its place; None if they differ."""
    older = {number for number, _ in trace.events[:start]}
    events_of = Counter(number for number, _ in trace.events[start:] if number != CACHE_EMPTIED)
    freed = sorted(number for number in events_of if number in older)
    left = sorted(number for number, events in events_of.items() if number not in older and events == 1)
    if [trace.blocks[number].size for number in freed] != [trace.blocks[number].size for number in left]:
        return None
    return dict(zip(freed, left, strict=True))
