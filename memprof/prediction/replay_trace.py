"""Replays a trace through the caching allocator, which gives every block the size that it really takes.

If the workspace of a convolution cannot be allocated, it is left out, because PyTorch then takes a plan of cuDNN that
needs less (`try_configs` in Conv_v8.cpp). By then the allocator has returned its cached blocks, as the real one has.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from memprof.allocator.caching import CachingAllocator, Handle, OutOfMemory
from memprof.prediction.cuda.kernels.convolution import SOURCE as CONVOLUTIONS
from memprof.trace.events import CACHE_EMPTIED, Block, Event, Trace


@dataclass(frozen=True)
class Replayed:
    """The result of a replay.

    Attributes:
        trace: The same blocks and spans, with events that have the sizes of the allocator's blocks.
        reserved: The most bytes reserved during each phase, the build included; empty without an allocator.
        reserved_levels: The bytes reserved after each event; empty without an allocator.
        failure: The index of the event that could not be served, which ends the replay; None if all were served.
    """

    trace: Trace
    reserved: dict[str, int]
    failure: int | None
    reserved_levels: Sequence[int] = ()


def replay_blocks(trace: Trace, allocator: CachingAllocator) -> Replayed:
    """Pass the events of a trace through an allocator.

    Args:
        trace: The trace, with sizes as requested.
        allocator: An allocator that has served no request yet.
    """
    events: list[Event] = []
    handles: dict[int, Handle] = {}
    reserved: dict[str, int] = {}
    levels = array("q")
    level = allocator.reserved_bytes
    ends = [span.start for span in trace.spans[1:]] + [len(trace.events)]
    for span, end in zip(trace.spans, ends, strict=True):
        most = level
        for number, change in trace.events[span.start : end]:
            size = 0
            if change > 0:
                handle = _served(allocator, trace.blocks[number], change)
                level = allocator.reserved_bytes  # a free does not change what is reserved
                most = max(most, level)
                if handle is not None:
                    handles[number], size = handle, handle.size
                elif not _gives_way(trace.blocks[number]):
                    return Replayed(trace, reserved, len(events))
            elif change < 0 and number in handles:
                handle = handles.pop(number)
                size = -handle.size
                allocator.free(handle)
            elif number == CACHE_EMPTIED:
                allocator.empty_cache()
                level = allocator.reserved_bytes
            events.append(Event(number, size))
            levels.append(level)
        reserved[span.phase] = max(reserved.get(span.phase, 0), most)
    return Replayed(Trace(blocks=trace.blocks, events=events, spans=trace.spans), reserved, None, levels)


def _served(allocator: CachingAllocator, block: Block, size: int) -> Handle | None:
    try:
        return allocator.allocate(size, block.stream)
    except OutOfMemory:
        return None


def _gives_way(block: Block) -> bool:
    return block.range is not None and block.range.source == CONVOLUTIONS
