"""What the CUDA allocator's own history comes to, and whether memprof's model of the allocator repeats it."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence

from memprof.allocator.recorded_driver import GIVEN_BACK, TAKEN
from memprof.allocator.replay_history import replay_history
from memprof.allocator.settings import AllocatorSettings
from memprof.documents.confidence import AllocatorHistory
from memprof.measurement.record.cuda_history import HistoryEvent
from memprof.trace.events import Allocation, Entry


def describe_history(
    history: Sequence[HistoryEvent],
    entries: Iterable[Entry],
    settings: AllocatorSettings | None = None,
    total_bytes: int | None = None,
) -> AllocatorHistory:
    """Return the peaks of a recording and those of its replay.

    Args:
        history: of one device, from the process's first allocation on.
        entries: the same blocks as handed out, which may be larger than requested.
        settings: of the allocator; PyTorch's defaults if not given.
        total_bytes: the device's memory.
    """
    tally = _Tally(entries)
    for event in history:
        tally.add(event)
    found = AllocatorHistory(
        events=tally.events,
        segment_events=tally.segment_events,
        requested_bytes=tally.peak_requested,
        allocated_bytes=tally.peak_allocated,
        reserved_bytes=tally.peak_reserved,
        fragmentation_bytes=tally.fragmentation,
    )
    try:
        replayed = replay_history(history, settings, total_bytes=total_bytes)
    except ValueError:  # private pools of CUDA graphs
        return found
    return found.model_copy(
        update={"replayed_reserved_bytes": replayed.report.peak_reserved_bytes, "exact": replayed.exact}
    )


class _Tally:
    """Sums over a recording, event by event."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._rounded: defaultdict[int, deque[int]] = defaultdict(deque)
        for entry in entries:
            if isinstance(entry, Allocation):
                self._rounded[entry.address].append(entry.size)
        self._live: dict[int, int] = {}
        self._requested = self._allocated = self._reserved = 0
        self.events = self.segment_events = 0
        self.peak_requested = self.peak_allocated = self.peak_reserved = self.fragmentation = 0

    def add(self, event: HistoryEvent) -> None:
        """Count one event of the recording in."""
        action = event["action"]
        if action in TAKEN or action in GIVEN_BACK:
            self.segment_events += 1
            self._reserved += event["size"] if action in TAKEN else -event["size"]
        elif action == "alloc":
            self._allocate(event["addr"], event["size"])
        elif action == "free_requested" and event["addr"] in self._live:
            self.events += 1
            self._requested -= event["size"]
            self._allocated -= self._live.pop(event["addr"])

    def _allocate(self, address: int, size: int) -> None:
        rounded = self._rounded[address]
        self.events += 1
        self._live[address] = rounded.popleft() if rounded else size
        self._requested += size
        self._allocated += self._live[address]
        self.peak_requested = max(self.peak_requested, self._requested)
        self.peak_allocated = max(self.peak_allocated, self._allocated)
        if self._reserved > self.peak_reserved:
            self.peak_reserved = self._reserved
            self.fragmentation = self._reserved - self._allocated
