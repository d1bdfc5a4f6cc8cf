"""Replays what a real allocator recorded: does the model take and give back the same segments?

A history is the list of one device in `torch.cuda.memory._snapshot()["device_traces"]`, recorded with
`torch.cuda.memory._record_memory_history` from the first allocation of the process on. The requests and frees are
simulated, and everything else in the history is the expected answer. There is one exception: the moment at which the
driver ran out of memory is taken from the recording, as the recording does not say how much memory other processes
held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile, zip_longest
from typing import Any, NamedTuple

from memprof.allocator.caching import CachingAllocator, Handle, OutOfMemory
from memprof.allocator.recorded_driver import GIVEN_BACK, TAKEN, RecordedDriver, SegmentEvent
from memprof.allocator.replay_events import AllocatorTimeline, ReplayReport, report_of
from memprof.allocator.settings import AllocatorSettings

_MOST_DIFFERENCES = 100


class ReplayDifference(NamedTuple):
    """An event of the recording at which the model did something else.

    Attributes:
        event: the index in the recording of the request that made the allocator act.
        real: what was recorded.
        simulated: what the model did.
    """

    event: int
    real: str
    simulated: str


@dataclass(frozen=True)
class HistoryReport:
    """The result of replaying a recording.

    Attributes:
        report: the result of the replay, in which events are counted as in the recording.
        differences: the differences between model and recording, at most the first hundred. There are none if the
            replay is byte-exact.
        segment_events: the number of segment events in the recording.
    """

    report: ReplayReport
    differences: tuple[ReplayDifference, ...]
    segment_events: int

    @property
    def exact(self) -> bool:
        """Whether every segment and every address is the same as in the recording."""
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
        settings: the allocator's settings during the recording.
        total_bytes: the device's memory, which matters with a memory fraction and for expandable segments.

    Raises:
        ValueError: the recording has a private pool (CUDA graphs, `MemPool`), which is not modelled.
    """
    replayer, timeline = HistoryReplayer(settings, total_bytes), AllocatorTimeline(len(history))
    for index, event in enumerate(history):
        replayer.feed(event)
        timeline.add(index, replayer.allocator)
    replayer.finish()
    report = report_of(replayer.allocator, timeline, replayer.out_of_memory_event)
    return HistoryReport(report, tuple(replayer.differences), replayer.segment_events)


class HistoryReplayer:
    """Replays a recording that arrives event by event.

    It collects the segment events up to the request that caused them, then lets the model serve that request.

    Args:
        settings: the allocator's settings during the recording.
        total_bytes: the device's memory, or None if it is not known.

    Attributes:
        allocator: the model, after the events so far.
        differences: the differences between model and recording, at most the first hundred.
        segment_events: the number of segment events so far.
        out_of_memory_event: the index of the first request that could not be served, or None.
    """

    def __init__(self, settings: AllocatorSettings | None, total_bytes: int | None) -> None:
        self._driver = RecordedDriver()
        self.allocator = CachingAllocator(None, settings, total_bytes=total_bytes, driver=self._driver)
        self.differences: list[ReplayDifference] = []
        self.segment_events = 0
        self.out_of_memory_event: int | None = None
        self._index = 0
        self._live: dict[int, Handle] = {}
        self._recorded: list[SegmentEvent] = []
        self._finished: list[Handle] = []  # blocks whose other streams finished since the last request
        self._last_freed: int | None = None

    def feed(self, event: Mapping[str, Any]) -> None:
        """Replay the next event.

        Args:
            event: a dictionary with `action`, `size`, `stream` and `addr`, as PyTorch records it.

        Raises:
            ValueError: the event belongs to a private pool (CUDA graphs, `MemPool`), which is not modelled.
        """
        if tuple(event.get("pool_id", (0, 0))) != (0, 0):
            raise ValueError("the recording has private pools (CUDA graphs or MemPool), which are not modelled")
        index, action = self._index, event["action"]
        self._index += 1
        if action in TAKEN or action in GIVEN_BACK:
            self.segment_events += 1
            self._recorded.append(SegmentEvent(action, event["addr"], event["size"]))
        elif action == "alloc":
            self._allocate(index, event)
        elif action == "oom":
            self._run_out(index, event)
        elif action == "free_requested":
            self._flush(index)
            self._finish()
            if event["addr"] in self._live:
                self.allocator.free_later(self._live[event["addr"]])
        elif action == "free_completed" and event["addr"] in self._live:
            handle = self._live.pop(event["addr"])
            if event["addr"] == self._last_freed:
                self.allocator.finish(handle)
            else:
                self._finished.append(handle)
        self._last_freed = event["addr"] if action == "free_requested" else None

    def finish(self) -> None:
        """Compare what is left after the last event of the recording."""
        self._flush(self._index)

    def _finish(self) -> None:
        for handle in self._finished:
            if handle.waiting:
                self.allocator.finish(handle)
        self._finished = []

    def _flush(self, index: int) -> None:
        """Empty the model's cache if segments were given back without a request that needed it.

        Then the program must have emptied the cache itself.
        """
        given_back = list(takewhile(lambda event: event.action in GIVEN_BACK, self._recorded))
        if given_back:
            del self._recorded[: len(given_back)]
            self._driver.expect(given_back, in_the_end_short=False)
            self.allocator.empty_cache()
            self._compare(index, given_back)

    def _request(self, index: int, event: Mapping[str, Any], runs_out: bool) -> list[SegmentEvent]:
        """Return what was recorded during a request, and tell the driver to expect it.

        The allocator notices at the start of a request that work on other streams is done. Otherwise it waits for that
        work when memory is short. In the second case the blocks come too late for the search, and the model waits for
        them itself. Segments that are given back show that memory was short, but not under garbage collection, which
        also gives segments back and runs after the search.
        """
        given_back = bool(self._recorded) and self._recorded[0].action in GIVEN_BACK
        memory_short = runs_out or (given_back and not self.allocator.collects_garbage)
        if not memory_short:
            self._finish()
        if self._recorded and self.allocator.has_cached(event["size"], event["stream"]):
            self._flush(index)
        recorded, self._recorded = self._recorded, []
        self._driver.expect(recorded, in_the_end_short=runs_out)
        return recorded

    def _allocate(self, index: int, event: Mapping[str, Any]) -> None:
        recorded = self._request(index, event, runs_out=False)
        try:
            handle = self.allocator.allocate(event["size"], event["stream"])
        except OutOfMemory:
            self._differ(index, "allocated", "out of memory")
        else:
            self._live[event["addr"]] = handle
            address = self._driver.real(handle.address)
            if address != event["addr"]:
                self._differ(index, f"at {event['addr']:#x}", f"at {address:#x}")
        self._compare(index, recorded)

    def _run_out(self, index: int, event: Mapping[str, Any]) -> None:
        recorded = self._request(index, event, runs_out=True)
        try:
            self.allocator.free(self.allocator.allocate(event["size"], event["stream"]))
            self._differ(index, "out of memory", "allocated")
        except OutOfMemory:
            if self.out_of_memory_event is None:
                self.out_of_memory_event = index
        self._compare(index, recorded)

    def _compare(self, index: int, recorded: list[SegmentEvent]) -> None:
        """Compare the events one by one, except that segments given back together may come in another order."""
        self._finish()
        real, simulated = _in_order(recorded), _in_order(self._driver.simulated)
        for one, other in zip_longest(real, simulated):
            if one != other:
                self._differ(index, _in_words(one), _in_words(other))

    def _differ(self, index: int, real: str, simulated: str) -> None:
        if len(self.differences) < _MOST_DIFFERENCES:
            self.differences.append(ReplayDifference(index, real, simulated))


def _in_order(events: list[SegmentEvent]) -> list[SegmentEvent]:
    given_back = sorted(event for event in events if event.action in GIVEN_BACK)
    return given_back + [event for event in events if event.action in TAKEN]


def _in_words(event: SegmentEvent | None) -> str:
    return "nothing" if event is None else f"{event.action} of {event.size} B at {event.address:#x}"
