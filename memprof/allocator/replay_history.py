"""Replay of what a real allocator recorded: does the model take and give back the same segments?

A history is the list of one device in `torch.cuda.memory._snapshot()["device_traces"]`, recorded from the process's
first allocation on with `torch.cuda.memory._record_memory_history`. The requests and frees are simulated; everything
else in it is the expected answer, but for one thing: when the driver ran out of memory is taken from the recording,
since what other processes held is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile, zip_longest
from typing import Any, NamedTuple

from memprof.allocator.caching import CachingAllocator, Handle, OutOfMemory
from memprof.allocator.recorded_driver import GIVEN_BACK, TAKEN, RecordedDriver, SegmentEvent
from memprof.allocator.replay_events import ReplayReport, Timeline, report_of
from memprof.allocator.settings import AllocatorSettings

_MOST_DIFFERENCES = 100


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
    replayer, timeline = HistoryReplayer(settings, total_bytes), Timeline(len(history))
    for index, event in enumerate(history):
        replayer.feed(event)
        timeline.add(index, replayer.allocator)
    replayer.finish()
    report = report_of(replayer.allocator, timeline, replayer.out_of_memory_event)
    return HistoryReport(report, tuple(replayer.differences), replayer.segment_events)


class HistoryReplayer:
    """Replays a recording that arrives event by event.

    It collects the segment events up to the request that caused them, then lets the model serve it.

    Args:
        settings: that the recording was made under.
        total_bytes: the device's memory.

    Attributes:
        allocator: the model, after the events so far.
        differences: where model and recording part, the first hundred.
        segment_events: how many segment events there were.
        out_of_memory_event: index of the first request that could not be served; None if all were.
    """

    def __init__(self, settings: AllocatorSettings | None, total_bytes: int | None) -> None:
        self._driver = RecordedDriver()
        self.allocator = CachingAllocator(None, settings, total_bytes=total_bytes, driver=self._driver)
        self.differences: list[Difference] = []
        self.segment_events = 0
        self.out_of_memory_event: int | None = None
        self._index = 0
        self._live: dict[int, Handle] = {}
        self._recorded: list[SegmentEvent] = []
        self._finished: list[Handle] = []  # since the last request, by work on other streams
        self._last_freed: int | None = None

    def feed(self, event: Mapping[str, Any]) -> None:
        """Replay the next event.

        Raises:
            ValueError: it is of a private pool (CUDA graphs, `MemPool`), which is not modelled.
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
        """The recording is over."""
        self._flush(self._index)

    def _finish(self) -> None:
        for handle in self._finished:
            if handle.waiting:
                self.allocator.finish(handle)
        self._finished = []

    def _flush(self, index: int) -> None:
        """Segments were given back and no request had a reason to do so: somebody emptied the cache."""
        given_back = list(takewhile(lambda event: event.action in GIVEN_BACK, self._recorded))
        if given_back:
            del self._recorded[: len(given_back)]
            self._driver.expect(given_back, in_the_end_short=False)
            self.allocator.empty_cache()
            self._compare(index, given_back)

    def _request(self, index: int, event: Mapping[str, Any], runs_out: bool) -> list[SegmentEvent]:
        """Return what was recorded during a request, and let the driver expect it.

        Work on other streams was found to be done at the start of the request, or waited for when memory was short:
        then the blocks it had used came too late for the search, and the model waits for them itself. Segments given
        back say that memory was short, but under garbage collection, which comes after the search, they need not.
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
        """Compare one by one; what is given back at once may come in another order."""
        self._finish()
        real, simulated = _in_order(recorded), _in_order(self._driver.simulated)
        for one, other in zip_longest(real, simulated):
            if one != other:
                self._differ(index, _in_words(one), _in_words(other))

    def _differ(self, index: int, real: str, simulated: str) -> None:
        if len(self.differences) < _MOST_DIFFERENCES:
            self.differences.append(Difference(index, real, simulated))


def _in_order(events: list[SegmentEvent]) -> list[SegmentEvent]:
    given_back = sorted(event for event in events if event.action in GIVEN_BACK)
    return given_back + [event for event in events if event.action in TAKEN]


def _in_words(event: SegmentEvent | None) -> str:
    return "nothing" if event is None else f"{event.action} of {event.size} B at {event.address:#x}"
