"""Replay of what a real allocator recorded: does the model take and give back the same segments?

A history is the list of one device in `torch.cuda.memory._snapshot()["device_traces"]`, recorded from the process's
first allocation on with `torch.cuda.memory._record_memory_history`. The requests and frees are simulated; everything
else in it is the expected answer, but for one thing: when the driver ran out of memory is taken from the recording,
since what other processes held is not in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

from memprof.simulation.allocator import CachingAllocator, Handle, OutOfMemory
from memprof.simulation.allocator_replay import ReplayReport, Timeline, report_of
from memprof.simulation.settings import AllocatorSettings

_TAKEN = ("segment_alloc", "segment_map")
_GIVEN_BACK = ("segment_free", "segment_unmap")


class SegmentEvent(NamedTuple):
    """The driver gave or took a segment, or pages of one; the action is called as in PyTorch's recording."""

    action: str
    address: int
    size: int


class Difference(NamedTuple):
    """At an event of the recording the model did something else.

    Attributes:
        event: index in the recording of the request that made the allocator act.
        real: what was recorded.
        simulated: what the model did.
    """

    event: int
    real: str
    simulated: str


@dataclass(frozen=True)
class HistoryReport:
    """What the replay of a recording came to.

    Attributes:
        report: as of any replay; events are counted as in the recording.
        differences: where model and recording part, at most the first hundred; empty is a byte-exact replay.
        segment_events: how many segment events the recording holds.
    """

    report: ReplayReport
    differences: tuple[Difference, ...]
    segment_events: int

    @property
    def exact(self) -> bool:
        """Every segment and every address is as recorded."""
        return not self.differences


def replay_history(
    history: Sequence[Mapping[str, Any]],
    settings: AllocatorSettings | None = None,
    *,
    total_bytes: int | None = None,
) -> HistoryReport:
    """Simulate a recorded history and compare each segment event and each address with the recording.

    Args:
        history: dictionaries with `action`, `size`, `stream` and `addr`, as PyTorch records them.
        settings: that the recording was made under.
        total_bytes: the device's memory, which matters under a memory fraction and for expandable segments.

    Raises:
        ValueError: the recording has a private pool (CUDA graphs, `MemPool`), which is not modelled.
    """
    if any(tuple(event.get("pool_id", (0, 0))) != (0, 0) for event in history):
        raise ValueError("the recording has private pools (CUDA graphs or MemPool), which are not modelled")
    replayer, timeline = _Replayer(settings, total_bytes), Timeline(len(history))
    for index, event in enumerate(history):
        replayer.feed(index, event)
        timeline.add(index, replayer.allocator)
    replayer.flush(len(history))
    count = sum(event["action"] in _TAKEN + _GIVEN_BACK for event in history)
    report = report_of(replayer.allocator, timeline, replayer.out_of_memory_event)
    return HistoryReport(report, tuple(replayer.differences[:100]), count)


class _RecordedDriver:
    """A driver that answers as the recorded one did: it is short of memory where segments were given back."""

    def __init__(self) -> None:
        self.simulated: list[SegmentEvent] = []
        self._recorded: deque[SegmentEvent] = deque()
        self._in_the_end_short = False
        self._invented = 2**60  # addresses for segments that the recording does not have

    def expect(self, recorded: list[SegmentEvent], in_the_end_short: bool) -> None:
        """Set what was recorded during the next request."""
        self.simulated = []
        self._recorded = deque(recorded)
        self._in_the_end_short = in_the_end_short

    def allocate(self, size: int, stream: int) -> int | None:
        if self._short():
            return None
        return self._take("segment_alloc", size)

    def free(self, address: int, size: int) -> None:
        self._give_back(SegmentEvent("segment_free", address, size))

    def reserve(self, size: int, stream: int) -> int:
        return self._recorded[0].address if self._recorded else self._invent()

    def map(self, address: int, size: int) -> bool:
        if self._short():
            return False
        self._take("segment_map", size, address)
        return True

    def unmap(self, address: int, size: int) -> None:
        self._give_back(SegmentEvent("segment_unmap", address, size))

    def _short(self) -> bool:
        return self._recorded[0].action in _GIVEN_BACK if self._recorded else self._in_the_end_short

    def _take(self, action: str, size: int, address: int | None = None) -> int:
        recorded = self._recorded.popleft().address if self._recorded else self._invent()
        self.simulated.append(SegmentEvent(action, recorded if address is None else address, size))
        return recorded

    def _give_back(self, event: SegmentEvent) -> None:
        self.simulated.append(event)
        if event in self._recorded:
            self._recorded.remove(event)

    def _invent(self) -> int:
        self._invented += 2**42
        return self._invented


class _Replayer:
    """Collects the segment events of a recording up to the request that caused them, then lets the model serve it."""

    def __init__(self, settings: AllocatorSettings | None, total_bytes: int | None) -> None:
        self._driver = _RecordedDriver()
        self.allocator = CachingAllocator(None, settings, total_bytes=total_bytes, driver=self._driver)
        self.differences: list[Difference] = []
        self.out_of_memory_event: int | None = None
        self._live: dict[int, Handle] = {}
        self._recorded: list[SegmentEvent] = []

    def feed(self, index: int, event: Mapping[str, Any]) -> None:
        action = event["action"]
        if action in _TAKEN or action in _GIVEN_BACK:
            self._recorded.append(SegmentEvent(action, event["addr"], event["size"]))
        elif action == "alloc":
            self._allocate(index, event)
        elif action == "oom":
            self._run_out(index, event)
        elif action == "free_requested":
            self.flush(index)
            if event["addr"] in self._live:
                self.allocator.free_later(self._live[event["addr"]])
        elif action == "free_completed":
            handle = self._live.pop(event["addr"], None)
            if handle is not None and handle.waiting:
                self.allocator.finish(handle)

    def flush(self, index: int) -> None:
        """Segments were given back and no request follows: somebody emptied the cache."""
        if self._recorded:
            recorded, self._recorded = self._recorded, []
            self._driver.expect(recorded, in_the_end_short=False)
            self.allocator.empty_cache()
            self._compare(index, recorded)

    def _allocate(self, index: int, event: Mapping[str, Any]) -> None:
        if self._recorded and self._recorded[-1].action in _GIVEN_BACK:
            self.flush(index)
        recorded, self._recorded = self._recorded, []
        self._driver.expect(recorded, in_the_end_short=False)
        try:
            handle = self.allocator.allocate(event["size"], event["stream"])
        except OutOfMemory:
            self.differences.append(Difference(index, "allocated", "out of memory"))
        else:
            self._live[event["addr"]] = handle
            if handle.address != event["addr"]:
                self.differences.append(Difference(index, f"at {event['addr']:#x}", f"at {handle.address:#x}"))
        self._compare(index, recorded)

    def _run_out(self, index: int, event: Mapping[str, Any]) -> None:
        recorded, self._recorded = self._recorded, []
        self._driver.expect(recorded, in_the_end_short=True)
        try:
            self.allocator.free(self.allocator.allocate(event["size"], event["stream"]))
            self.differences.append(Difference(index, "out of memory", "allocated"))
        except OutOfMemory:
            if self.out_of_memory_event is None:
                self.out_of_memory_event = index
        self._compare(index, recorded)

    def _compare(self, index: int, recorded: list[SegmentEvent]) -> None:
        """Compare one by one; what is given back at once may come in another order."""
        real, simulated = _in_order(recorded), _in_order(self._driver.simulated)
        for one, other in zip_longest(real, simulated):
            if one != other:
                self.differences.append(Difference(index, _in_words(one), _in_words(other)))


def _in_order(events: list[SegmentEvent]) -> list[SegmentEvent]:
    given_back = sorted(event for event in events if event.action in _GIVEN_BACK)
    return given_back + [event for event in events if event.action in _TAKEN]


def _in_words(event: SegmentEvent | None) -> str:
    return "nothing" if event is None else f"{event.action} of {event.size} B at {event.address:#x}"
