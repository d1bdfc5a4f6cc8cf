"""The upper bound of a prediction, computed from the stated ranges of its estimates. Nothing is fitted to data.

- Allocated: the peak with every estimated block (`Block.range`) at its largest size.
- Reserved: the largest of the replay and of replays in which frees come up to one allocation late, because
  fragmentation depends on their order. To it each source of estimates adds the growth of the reserved memory when its
  blocks have their largest size, and at least the largest sum of their surpluses that are alive at once.
- Workspaces of cuDNN for convolutions never add more than the device has left: if PyTorch cannot allocate one, it
  takes the next plan (`try_configs` in Conv_v8.cpp).

The terms of all sources are added. So another source never lowers a bound, and no bound is below its point estimate.
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
        allocated: The bound of the allocated bytes for each phase, the build included.
        reserved: The bound of the reserved bytes for each phase, the build included.
        ranges: The terms of the bounds.
    """

    allocated: dict[str, int]
    reserved: dict[str, int]
    ranges: list[SizeRange]


@dataclass(frozen=True)
class _Source:
    """The blocks of one source of estimates.

    Attributes:
        name: The name of the source.
        low, point, high: The most of its bytes that are alive at once, with each of the three sizes.
        reserved: The bytes that it adds to the reserved memory of each phase.
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
        trace: The trace, with sizes as requested.
        replayed: The replay of the trace.
        settings: The settings of the allocator that replayed it.
        capacity_bytes: The bytes that the device has for the allocator; None for unlimited memory.
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
    """Return the trace with about half of the frees after the next allocation instead of before it.

    Args:
        trace: The trace.
        seed: The seed that selects the frees.
    """
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
    """Return how many bytes larger than estimated a block may be, with both sizes as the allocator rounds them."""
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
    """Return the trace with other sizes for some blocks.

    Args:
        trace: The trace.
        sizes: The new sizes in bytes by the number of the block.
    """
    events = [
        Event(number, size)
        if number not in sizes or not size
        else Event(number, sizes[number] * (1 if size > 0 else -1))
        for number, size in trace.events
    ]
    return Trace(blocks=trace.blocks, events=events, spans=trace.spans)


def _reserved(trace: Trace, settings: AllocatorSettings) -> dict[str, int]:
    """Return the most bytes that a replay with unlimited memory reserves in each phase.

    Without a limit the allocator returns memory to the driver only when the cache is emptied.
    """
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
    """Return the largest level of each phase in bytes, with every estimated block at its largest size."""
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
