"""Combines the profiler's events with the CUDA allocator's own history.

The profiler reports the time and the rounded size of every allocation and free of the caching allocator. Its tree of
events misses those outside of any operator (seen on 2.8.0 and 2.15.0: frees by Python, and everything while operators
are not followed). Its flat list has all of them, but without addresses. The allocator's history has the addresses and
the requested sizes. Both are written under the allocator's lock, so they are in the same order.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch._C._autograd import DeviceType
from torch._C._profiler import _ExtraFields_Allocation

from memprof.measurement.record.cuda_history import HistoryEvent
from memprof.trace.events import Allocation, Entry, Free

_TAKEN, _GIVEN_BACK = "alloc", "free_requested"


class Loose(NamedTuple):
    """An allocation or free outside of every operator.

    Attributes:
        time_ns: Its time in nanoseconds, on the profiler's clock.
        entry: The event.
    """

    time_ns: int
    entry: Allocation | Free


def loose_events(sessions: Sequence[Any], history: Sequence[HistoryEvent], device_index: int) -> list[list[Loose]]:
    """Return, for each session of the profiler, the allocations and frees that its tree misses.

    Args:
        sessions: The results of the profiler in order. Together they cover the history from its beginning.
        history: The allocator's history of the same device.
        device_index: The index of the device.

    Raises:
        RuntimeError: The two sources do not have the same events.
    """
    recorded = (event for event in history if event["action"] in (_TAKEN, _GIVEN_BACK))
    found = [list(_missing(session, recorded, device_index)) for session in sessions]
    if next(recorded, None) is not None:
        raise RuntimeError("the CUDA allocator's history has events that the profiler has not seen")
    return found


def _missing(session: Any, recorded: Iterator[HistoryEvent], device_index: int) -> Iterator[Loose]:
    in_tree = set(_allocation_times(session.experimental_event_tree()))
    for event in sorted(_memory_events(session, device_index), key=_start_ns):
        size = event.nbytes()
        own = next(recorded, None)
        if own is None or (own["action"] == _TAKEN) != (size > 0):
            raise RuntimeError("the CUDA allocator's history and the profiler's events differ")
        if event.start_ns() not in in_tree:
            yield Loose(event.start_ns(), Allocation(own["addr"], size) if size > 0 else Free(own["addr"]))


def _memory_events(session: Any, device_index: int) -> Iterator[Any]:
    for event in session.events():
        here = event.device_type() == DeviceType.CUDA and event.device_index() == device_index
        if here and event.name() == "[memory]":
            yield event


def _start_ns(event: Any) -> int:
    return int(event.start_ns())


def _allocation_times(nodes: Iterable[Any]) -> Iterator[int]:
    for node in nodes:
        if isinstance(node.extra_fields, _ExtraFields_Allocation):
            yield node.start_time_ns
        yield from _allocation_times(node.children)


def as_requested(
    entries: Iterable[Entry], history: Iterable[HistoryEvent], streams: dict[int, int] | None = None
) -> list[Entry]:
    """Return the events with the requested size and the CUDA stream of each block.

    Args:
        entries: The events as the profiler saw them.
        history: The allocator's history of the same blocks.
        streams: The numbers of the CUDA streams seen before, from 0. New streams are added to it.

    Raises:
        RuntimeError: A block is missing in the history.
    """
    waiting: defaultdict[int, deque[HistoryEvent]] = defaultdict(deque)
    streams = {} if streams is None else streams
    for event in history:
        if event["action"] == _TAKEN:
            waiting[event["addr"]].append(event)
            streams.setdefault(event["stream"], len(streams))

    def own(block: Allocation) -> Allocation:
        if not waiting[block.address]:
            raise RuntimeError("the profiler has seen a block that is not in the CUDA allocator's history")
        event = waiting[block.address].popleft()
        return Allocation(block.address, event["size"], streams[event["stream"]])

    return [own(entry) if isinstance(entry, Allocation) else entry for entry in entries]
