"""The profiler's events and the CUDA allocator's own history, put together.

The profiler reports every block and free of the caching allocator, rounded, with its time. In its tree of events those
that happen outside of any operator are missing (seen on 2.8.0 and 2.15.0: frees by Python, and everything while
operators are not followed), and its flat list has all of them, but no addresses. The allocator's history has the
addresses and the sizes as requested. Both are written under the allocator's lock, so they are in the same order.
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
    """An allocation or free outside of every operator, and when it happened."""

    time_ns: int
    entry: Allocation | Free


def loose_events(sessions: Sequence[Any], history: Sequence[HistoryEvent], device_index: int) -> list[list[Loose]]:
    """Return, for each session of the profiler, the allocations and frees that its tree does not have.

    Args:
        sessions: results of the profiler, in order; together they cover the history from its beginning.
        history: of the same device.
        device_index: whose events.

    Raises:
        RuntimeError: the two sources do not tell of the same events.
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
    """Return the stream with each block at the size that was requested, and on its stream (0 is the first one seen).

    Args:
        entries: as the profiler saw them.
        history: of the same blocks.
        streams: the number of each stream that was seen before; those that are seen first here are added to it.

    Raises:
        RuntimeError: a block of the stream is not in the history.
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
