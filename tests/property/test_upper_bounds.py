"""Upper bounds: never below the point, never lowered by a range more, at least what a replay at the highs takes."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from memprof.allocator.caching import CachingAllocator
from memprof.allocator.settings import AllocatorSettings
from memprof.prediction.bounds import Bounds, late_frees, upper_bounds
from memprof.prediction.cuda.kernels.convolution import SOURCE as CONVOLUTIONS
from memprof.prediction.replay_trace import replay_blocks
from memprof.trace.events import Block, Event, PhaseSpan, SizeLimits, Trace
from memprof.trace.peaks import span_peaks

MIB = 2**20
SETTINGS = AllocatorSettings()
SIZES = st.one_of(st.integers(1, 4096), st.integers(MIB // 2, 3 * MIB), st.integers(8 * MIB, 40 * MIB))
SOURCES = ("convolutions", "sorting")


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Two steps of allocations and frees in any order; some blocks are estimates."""
    trace = Trace(spans=[PhaseSpan(0, 0, "build")])
    alive: list[int] = []
    for step, phase in ((0, "build"), (1, "forward"), (1, "backward"), (2, "forward"), (2, "backward")):
        if step:
            trace.spans.append(PhaseSpan(len(trace.events), step, phase))
        for _ in range(draw(st.integers(0, 12))):
            if alive and draw(st.booleans()):
                number = alive.pop(draw(st.integers(0, len(alive) - 1)))
                trace.events.append(Event(number, -trace.blocks[number].size))
                continue
            size = draw(SIZES)
            source = draw(st.sampled_from((None, *SOURCES)))
            limits = SizeLimits(draw(st.integers(1, size)), size + draw(SIZES), source) if source else None
            alive.append(len(trace.blocks))
            trace.events.append(Event(len(trace.blocks), size))
            trace.blocks.append(Block(size, phase, range=limits))
    return trace


def bounds_of(trace: Trace) -> Bounds:
    return upper_bounds(trace, replay_blocks(trace, CachingAllocator(None, SETTINGS)), SETTINGS)


def without(trace: Trace, source: str) -> Trace:
    blocks = [
        replace(block, range=None) if block.range is not None and block.range.source == source else block
        for block in trace.blocks
    ]
    return Trace(blocks=blocks, events=trace.events, spans=trace.spans)


@given(traces())
@settings(max_examples=60)
def test_no_bound_is_below_its_point_nor_reserved_below_allocated(trace: Trace) -> None:
    replayed = replay_blocks(trace, CachingAllocator(None, SETTINGS))
    found = bounds_of(trace)
    for span in span_peaks(replayed.trace):
        assert found.allocated[span.phase] >= span.peak_bytes
    for phase, point in replayed.reserved.items():
        assert found.reserved[phase] >= max(point, found.allocated[phase])
    for one in found.ranges:
        assert one.low_bytes <= one.bytes <= one.high_bytes


@given(traces(), st.sampled_from(SOURCES))
@settings(max_examples=60)
def test_one_more_range_never_lowers_a_bound(trace: Trace, source: str) -> None:
    fewer, more = bounds_of(without(trace, source)), bounds_of(trace)
    for phase in more.reserved:
        assert more.allocated[phase] >= fewer.allocated[phase]
        assert more.reserved[phase] >= fewer.reserved[phase]


@given(traces())
@settings(max_examples=40)
def test_the_bound_covers_the_replay_with_a_source_at_its_highest(trace: Trace) -> None:
    plain = without(trace, SOURCES[1])
    highest = {n: block.range.high for n, block in enumerate(plain.blocks) if block.range is not None}
    events = [
        Event(n, size if n not in highest else (highest[n] if size > 0 else -highest[n])) for n, size in plain.events
    ]
    grown = replay_blocks(
        Trace(blocks=plain.blocks, events=events, spans=plain.spans), CachingAllocator(None, SETTINGS)
    )
    found = bounds_of(plain)
    for phase, reserved in grown.reserved.items():
        assert found.reserved[phase] >= reserved
    for span in span_peaks(grown.trace):
        assert found.reserved[span.phase] >= span.peak_bytes


@given(traces(), st.integers(0, 5))
@settings(max_examples=40)
def test_late_frees_are_the_same_events_and_no_block_is_freed_before_it_is_there(trace: Trace, seed: int) -> None:
    late = late_frees(trace, seed)
    assert sorted(late.events) == sorted(trace.events)
    ends = [span.start for span in trace.spans[1:]] + [len(trace.events)]
    for span, end in zip(trace.spans, ends, strict=True):
        assert sorted(late.events[span.start : end]) == sorted(trace.events[span.start : end])
    level = {}
    for number, size in late.events:
        level[number] = level.get(number, 0) + size
        assert level[number] >= 0


def test_a_convolutions_workspace_gives_way_to_what_else_is_needed() -> None:
    trace = Trace(spans=[PhaseSpan(0, 0, "build"), PhaseSpan(1, 1, "forward")])
    for size, limits in ((60 * MIB, None), (50 * MIB, SizeLimits(0, 80 * MIB, CONVOLUTIONS)), (30 * MIB, None)):
        trace.events.append(Event(len(trace.blocks), size))
        trace.blocks.append(Block(size, "forward", range=limits))
    trace.events.insert(2, Event(1, -50 * MIB))
    replayed = replay_blocks(trace, CachingAllocator(100 * MIB, SETTINGS))
    assert replayed.failure is None
    assert [event.size for event in replayed.trace.events] == [60 * MIB, 0, 0, 30 * MIB]
    assert replayed.reserved == {"build": 60 * MIB, "forward": 90 * MIB}
    assert replay_blocks(without(trace, CONVOLUTIONS), CachingAllocator(100 * MIB, SETTINGS)).failure == 1


def test_the_bound_of_a_convolutions_workspace_ends_at_the_capacity() -> None:
    trace = Trace(spans=[PhaseSpan(0, 0, "build"), PhaseSpan(1, 1, "forward")])
    for number, (size, limits) in enumerate(((60 * MIB, None), (1, SizeLimits(0, 80 * MIB, CONVOLUTIONS)))):
        trace.events.append(Event(number, size))
        trace.blocks.append(Block(size, "forward", range=limits))
    replayed = replay_blocks(trace, CachingAllocator(None, SETTINGS))
    free, limited = (upper_bounds(trace, replayed, SETTINGS, capacity) for capacity in (None, 100 * MIB))
    assert free.reserved["forward"] == 142 * MIB  # the small block's segment too
    assert limited.reserved["forward"] == limited.allocated["forward"] == 100 * MIB
