"""How much more than its point estimate a prediction may come to: an upper bound from stated ranges, nothing fitted.

- Allocated: every block whose size is an estimate (`Block.range`) at its highest, where that makes the peak largest.
- Reserved: the most of the replay and of replays in which frees come up to one allocation late, for fragmentation
  hangs on the order; to it each source of estimates adds what it makes the reserved memory grow when its blocks are at
  their highest, at the least the largest sum of such surpluses that live at once.
- What cuDNN takes for convolutions gives way: where its workspace cannot be had PyTorch takes the next plan
  (`try_configs` in Conv_v8.cpp), so it never adds more than what the device has left.

Sources add up, so one source more never lowers a bound, and no bound is below its point.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from memprof.allocator.caching import CachingAllocator, Handle
from memprof.allocator.settings import LARGE_ROUNDING, AllocatorSettings
from memprof.documents.confidence import SizeRange
from memprof.prediction.cuda.kernels.convolution import SOURCE as CONVOLUTIONS
from memprof.prediction.replay_trace import Replayed
from memprof.trace.events import CACHE_EMPTIED, Block, Event, Trace

LATE_REPLAYS = 3


@dataclass(frozen=True)
class Bounds:
    """The upper bounds of a replayed trace.

    Attributes:
        allocated: by phase, the build included.
        reserved: by phase, the build included.
        ranges: the terms of the bounds.
    """

    allocated: dict[str, int]
    reserved: dict[str, int]
    ranges: list[SizeRange]


@dataclass(frozen=True)
class _Source:
    """The blocks of one source of estimates.

    Attributes:
        name: of the source.
        low, point, high: the most of its bytes that live at once, by each of the three sizes.
        reserved: by phase, what it adds to the reserved memory.
    """

    name: str
    low: int
    point: int
    high: int
    reserved: dict[str, int]


def upper_bounds(
    trace: Trace, replayed: Replayed, settings: AllocatorSettings, capacity_bytes: int | None = None
) -> Bounds:
    """Return the upper bounds of a trace that the allocator could serve.

    Args:
        trace: as it was traced, sizes as asked for.
        replayed: its replay.
        settings: of the allocator that replayed it.
        capacity_bytes: what the device has for the allocator; None for without end.
    """
    names = sorted({block.range.source for block in trace.blocks if block.range is not None})
    sources = [_source(name, trace, replayed, settings) for name in names]
    late = [_reserved(late_frees(trace, seed), settings) for seed in range(LATE_REPLAYS)]
    fragmented = {phase: max(point, *(one.get(phase, 0) for one in late)) for phase, point in replayed.reserved.items()}
    sources = [_given_way(one, fragmented, capacity_bytes) for one in sources]
    reserved = {phase: most + sum(one.reserved[phase] for one in sources) for phase, most in fragmented.items()}
    allocated = _allocated(trace, replayed.trace, settings)
    if capacity_bytes is not None:
        allocated = {phase: min(most, max(capacity_bytes, fragmented[phase])) for phase, most in allocated.items()}
    return Bounds(
        allocated=allocated,
        reserved={phase: max(most, allocated[phase]) for phase, most in reserved.items()},
        ranges=[_fragmentation(replayed.reserved, late, fragmented), *map(_as_range, sources)],
    )


def _given_way(source: _Source, fragmented: Mapping[str, int], capacity_bytes: int | None) -> _Source:
    if capacity_bytes is None or source.name != CONVOLUTIONS:
        return source
    left = {phase: max(0, capacity_bytes - most) for phase, most in fragmented.items()}
    return replace(source, reserved={phase: min(adds, left[phase]) for phase, adds in source.reserved.items()})


def late_frees(trace: Trace, seed: int) -> Trace:
    """Return the trace with about half of the frees after the next allocation instead of before it."""
    draw = random.Random(seed)
    events: list[Event] = []
    ends = [span.start for span in trace.spans[1:]] + [len(trace.events)]
    for span, end in zip(trace.spans, ends, strict=True):
        waiting: list[Event] = []
        for event in trace.events[span.start : end]:
            if event.size < 0 and draw.random() < 0.5:
                waiting.append(event)
                continue
            events.append(event)
            if event.size > 0:
                events += waiting
                waiting = []
        events += waiting
    return Trace(blocks=trace.blocks, events=events, spans=trace.spans)


def _source(name: str, trace: Trace, replayed: Replayed, settings: AllocatorSettings) -> _Source:
    highest = {
        number: block.range.high
        for number, block in enumerate(trace.blocks)
        if block.range is not None and block.range.source == name
    }
    grown = _reserved(resized(trace, highest), settings)
    lowest = {number: block.range.low for number in highest if (block := trace.blocks[number]).range is not None}
    low, point, high = (
        _most_alive(trace, {number: settings.round_size(size) for number, size in sizes.items()})
        for sizes in (lowest, {number: trace.blocks[number].size for number in highest}, highest)
    )
    extra = {number: _surplus(trace.blocks[number], settings) for number in highest}
    least = -(-_most_alive(trace, extra) // LARGE_ROUNDING) * LARGE_ROUNDING
    adds = {phase: max(least, grown.get(phase, 0) - most) for phase, most in replayed.reserved.items()}
    return _Source(name, low, point, max(high, point), adds)


def _surplus(block: Block, settings: AllocatorSettings) -> int:
    """Return by how much a block may be larger than estimated, both as the allocator rounds them."""
    if block.range is None:
        return 0
    return max(0, settings.round_size(block.range.high) - settings.round_size(block.size))


def _most_alive(trace: Trace, sizes: Mapping[int, int]) -> int:
    """Return the largest sum of these blocks' sizes at one time."""
    level = most = 0
    for number, size in trace.events:
        if number in sizes and size:
            level += sizes[number] if size > 0 else -sizes[number]
            most = max(most, level)
    return most


def resized(trace: Trace, sizes: Mapping[int, int]) -> Trace:
    """Return the trace with other sizes for some blocks."""
    events = [
        Event(number, size)
        if number not in sizes or not size
        else Event(number, sizes[number] * (1 if size > 0 else -1))
        for number, size in trace.events
    ]
    return Trace(blocks=trace.blocks, events=events, spans=trace.spans)


def _reserved(trace: Trace, settings: AllocatorSettings) -> dict[str, int]:
    """Return the most that a replay without end reserves, by phase; only emptying the cache gives memory back."""
    allocator = CachingAllocator(None, settings)
    handles: dict[int, Handle] = {}
    reserved: dict[str, int] = {}
    ends = [span.start for span in trace.spans[1:]] + [len(trace.events)]
    for span, end in zip(trace.spans, ends, strict=True):
        most = reserved.get(span.phase, 0)
        for number, size in trace.events[span.start : end]:
            if size > 0:
                handles[number] = allocator.allocate(size, trace.blocks[number].stream)
            elif size < 0:
                allocator.free(handles.pop(number))
            elif number == CACHE_EMPTIED:
                most = max(most, allocator.reserved_bytes)
                allocator.empty_cache()
        reserved[span.phase] = max(most, allocator.reserved_bytes)
    return reserved


def _allocated(trace: Trace, served: Trace, settings: AllocatorSettings) -> dict[str, int]:
    """Return the largest level of each phase, with every estimated block at its highest."""
    surplus = {number: _surplus(block, settings) for number, block in enumerate(trace.blocks) if block.range}
    peaks: dict[str, int] = {}
    ends = [span.start for span in served.spans[1:]] + [len(served.events)]
    level = 0
    for span, end in zip(served.spans, ends, strict=True):
        most = level
        for number, size in served.events[span.start : end]:
            extra = surplus.get(number, 0)
            level += size + (extra if size > 0 else -extra if size < 0 else 0)
            most = max(most, level)
        peaks[span.phase] = max(peaks.get(span.phase, 0), most)
    return peaks


def _fragmentation(point: dict[str, int], late: list[dict[str, int]], most: dict[str, int]) -> SizeRange:
    return SizeRange(
        what="memory reserved, by the order of frees",
        layer="reserved",
        low_bytes=min(max(one.values()) for one in (point, *late)),
        bytes=max(point.values()),
        high_bytes=max(most.values()),
        source=f"{LATE_REPLAYS} replays in which half of the frees come one allocation late",
    )


def _as_range(source: _Source) -> SizeRange:
    return SizeRange(
        what=source.name,
        layer="allocated",
        low_bytes=min(source.low, source.point),
        bytes=source.point,
        high_bytes=source.point + max(source.high - source.point, *source.reserved.values()),
        source="the table of workspaces (memprof/prediction/cuda/kernels/__init__.py)",
    )
