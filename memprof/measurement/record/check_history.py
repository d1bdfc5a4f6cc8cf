"""Sums up the CUDA allocator's own history, and checks that memprof's model of the allocator repeats it."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable

from memprof.allocator.recorded_driver import GIVEN_BACK, TAKEN
from memprof.allocator.replay_history import HistoryReplayer
from memprof.allocator.settings import AllocatorSettings
from memprof.documents.confidence import AllocatorHistory
from memprof.measurement.record.cuda_history import HistoryEvent
from memprof.trace.events import Allocation, Entry


class HistorySummary:
    """Computes the peaks of a record that arrives piece by piece, and of its replay.

    Args:
        settings: The settings of the allocator; PyTorch's defaults if None.
        total_bytes: The memory of the device in bytes.
    """

    def __init__(self, settings: AllocatorSettings | None = None, total_bytes: int | None = None) -> None:
        self._tally = _Tally()
        self._replayer: HistoryReplayer | None = HistoryReplayer(settings, total_bytes)

    def add(self, history: Iterable[HistoryEvent], entries: Iterable[Entry]) -> None:
        """Take in the next piece of the record.

        Args:
            history: The events of one device. The first piece begins with the first allocation of the process.
            entries: The same blocks with the sizes that the allocator handed out, which may exceed the requests.
        """
        self._tally.expect(entries)
        for event in history:
            self._tally.add(event)
            self._replay(event)

    def _replay(self, event: HistoryEvent) -> None:
        if self._replayer is not None:
            try:
                self._replayer.feed(event)
            except ValueError:  # the model has no private pools of CUDA graphs
                self._replayer = None

    def finish(self) -> AllocatorHistory:
        """Return the figures of the whole record."""
        tally = self._tally
        found = AllocatorHistory(
            events=tally.events,
            segment_events=tally.segment_events,
            requested_bytes=tally.peak_requested,
            allocated_bytes=tally.peak_allocated,
            reserved_bytes=tally.peak_reserved,
            fragmentation_bytes=tally.fragmentation,
        )
        if self._replayer is None:
            return found
        self._replayer.finish()
        replayed = self._replayer.allocator.peak_reserved_bytes
        return found.model_copy(update={"replayed_reserved_bytes": replayed, "exact": not self._replayer.differences})


class _Tally:
    """Sums over a record, event by event."""

    def __init__(self) -> None:
        self._rounded: defaultdict[int, deque[int]] = defaultdict(deque)
        self._live: dict[int, int] = {}
        self._requested = self._allocated = self._reserved = 0
        self.events = self.segment_events = 0
        self.peak_requested = self.peak_allocated = self.peak_reserved = self.fragmentation = 0

    def expect(self, entries: Iterable[Entry]) -> None:
        """Note the sizes that the allocator handed out for the blocks of the next piece."""
        self._rounded.clear()
        for entry in entries:
            if isinstance(entry, Allocation):
                self._rounded[entry.address].append(entry.size)

    def add(self, event: HistoryEvent) -> None:
        """Count one event of the record."""
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
