"""Replay of a trace through the caching allocator: what it reserves, and whether it runs out of memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from memprof.allocator.caching import CachingAllocator, Handle, OutOfMemory
from memprof.trace.events import CACHE_EMPTIED, Trace

TIMELINE_POINTS = 512


class TimelinePoint(NamedTuple):
    """The allocator's state right after one event."""

    event: int
    allocated_bytes: int
    reserved_bytes: int


@dataclass(frozen=True)
class ReplayReport:
    """What a replay through the caching allocator came to.

    Attributes:
        peak_allocated_bytes: largest sum of the blocks in use, rounded as PyTorch counts them.
        peak_requested_bytes: largest sum of what was asked for.
        peak_active_bytes: largest sum of the blocks in use or waiting for another stream.
        peak_reserved_bytes: largest sum of the segments held.
        fragmentation_bytes: reserved and not allocated, right after `reserved` first reached its peak.
        out_of_memory_event: index of the event that could not be served, where the replay ends; None if all were.
        timeline: at most `TIMELINE_POINTS` points in order, the peaks of allocated and of reserved among them.
    """

    peak_allocated_bytes: int
    peak_requested_bytes: int
    peak_active_bytes: int
    peak_reserved_bytes: int
    fragmentation_bytes: int
    out_of_memory_event: int | None
    timeline: tuple[TimelinePoint, ...]

    @property
    def out_of_memory(self) -> bool:
        """The memory did not suffice."""
        return self.out_of_memory_event is not None


def replay(trace: Trace, allocator: CachingAllocator) -> ReplayReport:
    """Pass the events of a trace through an allocator that has served nothing yet.

    Args:
        trace: from an empty process on.
        allocator: of the device that the trace is to run on; afterwards it holds what the trace has left.
    """
    handles: dict[int, Handle] = {}
    timeline = Timeline(len(trace.events))
    for index, (number, size) in enumerate(trace.events):
        if size > 0:
            try:
                handles[number] = allocator.allocate(size, trace.blocks[number].stream)
            except OutOfMemory:
                return report_of(allocator, timeline, index)
        elif size < 0:
            allocator.free(handles.pop(number))
        elif number == CACHE_EMPTIED:
            allocator.empty_cache()
        timeline.add(index, allocator)
    return report_of(allocator, timeline, None)


def report_of(allocator: CachingAllocator, timeline: Timeline, out_of_memory_event: int | None) -> ReplayReport:
    """Return the report on an allocator whose every event was added to the timeline."""
    return ReplayReport(
        peak_allocated_bytes=allocator.peak_allocated_bytes,
        peak_requested_bytes=allocator.peak_requested_bytes,
        peak_active_bytes=allocator.peak_active_bytes,
        peak_reserved_bytes=allocator.peak_reserved_bytes,
        fragmentation_bytes=timeline.fragmentation_bytes,
        out_of_memory_event=out_of_memory_event,
        timeline=tuple(timeline.points()),
    )


class Timeline:
    """A timeline thinned out as it is made: of each bucket of events the highest point of either curve stays.

    Args:
        n_events: how many events there will be.
        most_points: how many points may stay.
    """

    def __init__(self, n_events: int, most_points: int = TIMELINE_POINTS) -> None:
        self._width = max(1, -(-n_events * 2 // most_points))
        self._bucket = -1
        self._kept: list[TimelinePoint] = []
        self._highest_allocated: TimelinePoint | None = None
        self._highest_reserved: TimelinePoint | None = None
        self._peak_reserved = -1
        self.fragmentation_bytes = 0

    def add(self, event: int, allocator: CachingAllocator) -> None:
        """Add the state after an event; events come in order."""
        allocated, reserved = allocator.allocated_bytes, allocator.reserved_bytes
        if reserved > self._peak_reserved:
            self._peak_reserved, self.fragmentation_bytes = reserved, reserved - allocated
        if event // self._width != self._bucket:
            self._close_bucket()
            self._bucket = event // self._width
        if self._highest_allocated is None or allocated > self._highest_allocated.allocated_bytes:
            self._highest_allocated = TimelinePoint(event, allocated, reserved)
        if self._highest_reserved is None or reserved > self._highest_reserved.reserved_bytes:
            self._highest_reserved = TimelinePoint(event, allocated, reserved)

    def points(self) -> Iterable[TimelinePoint]:
        """Return the points kept, in order."""
        self._close_bucket()
        return self._kept

    def _close_bucket(self) -> None:
        self._kept.extend(sorted({point for point in (self._highest_allocated, self._highest_reserved) if point}))
        self._highest_allocated = self._highest_reserved = None
