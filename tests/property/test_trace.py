"""The one-pass analysis against a slow and obvious one, on random streams of events."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memprof.measurement.record.mark_blocks import MARK_BYTES, place_marks
from memprof.trace.attribution import build_trace
from memprof.trace.events import Allocation, Entry, Free, PhaseMark
from memprof.trace.peaks import holdings_at, span_peaks

PHASES = ("forward", "backward", "optimizer")


@st.composite
def streams(draw: st.DrawFn) -> list[Entry]:
    """Random allocations, frees of what lives, reuse of addresses, and phases."""
    entries: list[Entry] = []
    live: list[int] = []
    free_addresses = list(range(1, 12))
    step = 0
    for _ in range(draw(st.integers(0, 40))):
        action = draw(st.sampled_from(["allocate", "free", "phase"]))
        if action == "allocate" and free_addresses:
            address = free_addresses.pop(draw(st.integers(0, len(free_addresses) - 1)))
            live.append(address)
            entries.append(Allocation(address, draw(st.integers(17, 10_000))))
        elif action == "free" and live:
            address = live.pop(draw(st.integers(0, len(live) - 1)))
            free_addresses.append(address)
            entries.append(Free(address))
        elif action == "phase":
            step += 1
            entries.append(PhaseMark(step, draw(st.sampled_from(PHASES))))
    return entries


def slow_peaks(entries: list[Entry]) -> list[int]:
    """The peak of each span by recomputing the live set after every entry."""
    live: dict[int, int] = {}
    peaks = [0]
    for entry in entries:
        if isinstance(entry, PhaseMark):
            peaks.append(sum(live.values()))
        elif isinstance(entry, Allocation):
            live[entry.address] = entry.size
        elif isinstance(entry, Free):
            del live[entry.address]
        peaks[-1] = max(peaks[-1], sum(live.values()))
    return peaks


@given(streams())
def test_span_peaks_equal_the_slow_count(entries: list[Entry]) -> None:
    trace = build_trace(entries)
    peaks = span_peaks(trace)
    assert [peak.peak_bytes for peak in peaks] == slow_peaks(entries)
    for peak in peaks:
        assert holdings_at(trace, peak.event).total_bytes == peak.peak_bytes


@given(streams(), st.data())
def test_marks_come_back_in_their_places(entries: list[Entry], data: st.DataObject) -> None:
    """Encode marks as blocks of their own among real events, some of which have a mark's very size and address."""
    live: set[int] = set()
    stream: list[Entry] = []
    marks = []
    for entry in entries:
        if isinstance(entry, Allocation):
            live.add(entry.address)
            stream.append(Allocation(entry.address, data.draw(st.sampled_from([entry.size, MARK_BYTES]))))
        elif isinstance(entry, Free):
            live.remove(entry.address)
            stream.append(entry)
        elif isinstance(entry, PhaseMark):
            address = min(set(range(1, 14)) - live)  # a free address, as the allocator would give
            marks.append((address, entry))
            stream += [Allocation(address, MARK_BYTES), Free(address)]
    placed = place_marks(stream, marks)
    assert [entry for entry in placed if isinstance(entry, PhaseMark)] == [mark for _, mark in marks]
    expected = Counter(entry.size for entry in stream if isinstance(entry, Allocation))
    expected[MARK_BYTES] -= len(marks)
    assert Counter(entry.size for entry in placed if isinstance(entry, Allocation)) == +expected
    assert len(placed) == len(stream) - len(marks)


def test_lost_marks_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="marks are missing"):
        place_marks([Allocation(1, 100), Free(1)], [(7, PhaseMark(1, "forward"))])
