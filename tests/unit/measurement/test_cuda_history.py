"""The CUDA allocator's own history: PyTorch's recordings, put together with what the profiler sees."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
from torch._C._autograd import DeviceType

from memprof.allocator.caching import CachingAllocator, OutOfMemory
from memprof.allocator.settings import AllocatorSettings, parse_alloc_conf
from memprof.documents.confidence import AllocatorHistory
from memprof.measurement.record.check_history import HistorySummary
from memprof.measurement.record.cuda_events import Loose, as_requested, loose_events
from memprof.trace.attribution import build_trace, label_buckets, label_workspaces
from memprof.trace.events import Allocation, Entry, Free, LabelMark, PhaseMark
from memprof.trace.peaks import tensor_peaks
from tests.data.allocator.programs import CAPACITY, HERE
from tests.data.allocator.record import unpack

TRAINING = json.loads((HERE / "training.json").read_text())["runs"]
PROGRAMS = json.loads((HERE / "histories.json").read_text())["programs"]
KIB = 1024


def describe_history(
    history: list[dict[str, Any]],
    entries: list[Entry],
    settings: AllocatorSettings | None = None,
    total_bytes: int | None = None,
) -> AllocatorHistory:
    summary = HistorySummary(settings, total_bytes)
    summary.add(history, entries)
    return summary.finish()


def rounded(history: list[dict[str, Any]], settings: AllocatorSettings, emptied: list[int]) -> list[Entry]:
    """Return what the profiler would have reported of a recording: blocks as the allocator rounds them."""
    allocator = CachingAllocator(CAPACITY, settings)
    live, entries = {}, []
    for index, event in enumerate(history):
        for _ in range(emptied.count(index)):
            allocator.empty_cache()
        if event["action"] == "alloc":
            block = live[event["addr"]] = allocator.allocate(event["size"], event["stream"])
            entries.append(Allocation(event["addr"], block.size))
        elif event["action"] == "free_requested":
            allocator.free_later(live[event["addr"]])
            entries.append(Free(event["addr"]))
        elif event["action"] == "free_completed" and live[event["addr"]].waiting:
            allocator.finish(live.pop(event["addr"]))
        elif event["action"] == "oom":
            with pytest.raises(OutOfMemory):
                allocator.allocate(event["size"], event["stream"])
    return entries


@pytest.mark.parametrize("run", TRAINING, ids=lambda run: f"{run['precision']} {run['conf']}")
def test_a_recorded_training_gives_the_peaks_that_pytorch_counted_and_is_replayed_exactly(run: dict[str, Any]) -> None:
    history, settings = [unpack(event) for event in run["events"]], parse_alloc_conf(run["conf"])
    found = describe_history(history, rounded(history, settings, []), settings, CAPACITY)
    assert found.requested_bytes == run["stats"]["peak_requested"]
    assert found.allocated_bytes == run["stats"]["peak_allocated"]
    assert found.reserved_bytes == found.replayed_reserved_bytes == run["stats"]["peak_reserved"]
    assert found.exact
    assert 0 < found.fragmentation_bytes < found.reserved_bytes
    assert found.segment_events == sum(event["action"].startswith("segment") for event in history)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda one: f"{one['conf'] or 'defaults'} of {one['fraction']}")
def test_recorded_programs_give_the_peaks_that_pytorch_counted(program: dict[str, Any]) -> None:
    settings = replace(parse_alloc_conf(program["conf"]), memory_fraction=program["fraction"])
    history = [unpack(event) for event in program["events"]]
    found = describe_history(history, rounded(history, settings, program["emptied"]), settings, CAPACITY)
    assert found.allocated_bytes == program["stats"]["peak_allocated"]
    assert found.reserved_bytes == found.replayed_reserved_bytes == program["stats"]["peak_reserved"]
    assert found.exact


def test_a_recording_with_private_pools_has_no_replay() -> None:
    events = [
        {"action": "segment_alloc", "addr": 4096, "size": 2 << 20, "stream": 0, "pool_id": (0, 1)},
        {"action": "alloc", "addr": 4096, "size": 100, "stream": 0, "pool_id": (0, 1)},
    ]
    found = describe_history(events, [Allocation(4096, 512)])
    assert (found.requested_bytes, found.allocated_bytes, found.reserved_bytes) == (100, 512, 2 << 20)
    assert found.fragmentation_bytes == (2 << 20) - 512
    assert found.replayed_reserved_bytes is None
    assert found.exact is None


@dataclass
class FakeEvent:
    """A `_KinetoEvent`, as far as it is read."""

    time: int
    size: int
    kind: DeviceType = DeviceType.CUDA
    index: int = 0
    label: str = "[memory]"

    def name(self) -> str:
        return self.label

    def start_ns(self) -> int:
        return self.time

    def nbytes(self) -> int:
        return self.size

    def device_type(self) -> DeviceType:
        return self.kind

    def device_index(self) -> int:
        return self.index


@dataclass
class FakeSession:
    """A result of the profiler whose tree has nothing."""

    found: list[FakeEvent]

    def events(self) -> list[FakeEvent]:
        return self.found

    def experimental_event_tree(self) -> list[Any]:
        return []


def event(action: str, address: int, size: int, stream: int = 7) -> dict[str, Any]:
    return {"action": action, "addr": address, "size": size, "stream": stream}


HISTORY = [
    event("segment_alloc", 4096, 2 << 20),
    event("alloc", 4096, 100),
    event("alloc", 8192, 700, stream=9),
    event("free_requested", 4096, 100),
    event("free_completed", 4096, 100),
    event("alloc", 4096, 300),
]
SESSIONS = [
    FakeSession(
        [
            FakeEvent(30, -512),
            FakeEvent(10, 512),
            FakeEvent(15, 61, kind=DeviceType.CPU),
            FakeEvent(16, 512, index=1),
            FakeEvent(20, 1024),
            FakeEvent(21, 5, label="aten::empty"),
        ]
    ),
    FakeSession([FakeEvent(40, 512)]),
]


def test_events_outside_of_operators_get_their_addresses_from_the_history() -> None:
    assert loose_events(SESSIONS, HISTORY, 0) == [
        [Loose(10, Allocation(4096, 512)), Loose(20, Allocation(8192, 1024)), Loose(30, Free(4096))],
        [Loose(40, Allocation(4096, 512))],
    ]


@pytest.mark.parametrize("history", [HISTORY[:-1], [*HISTORY, event("alloc", 12288, 1)], [*HISTORY[:1], *HISTORY[2:]]])
def test_sources_that_differ_are_not_put_together(history: list[dict[str, Any]]) -> None:
    with pytest.raises(RuntimeError, match="history"):
        loose_events(SESSIONS, history, 0)


def test_blocks_are_given_the_size_that_was_requested_and_their_stream() -> None:
    mark = PhaseMark(1, "forward")
    entries = [Allocation(4096, 512), mark, Allocation(8192, 1024), Free(4096), Allocation(4096, 512)]
    assert as_requested(entries, HISTORY) == [
        Allocation(4096, 100, 0),
        mark,
        Allocation(8192, 700, 1),
        Free(4096),
        Allocation(4096, 300, 0),
    ]
    with pytest.raises(RuntimeError, match="not in the CUDA allocator's history"):
        as_requested([Allocation(12288, 512)], HISTORY)


def test_tensors_are_counted_as_requested_and_a_library_s_workspace_is_named() -> None:
    history = [event("alloc", 4096, 100), event("alloc", 8192, 65 * KIB), event("alloc", 1 << 20, 65 * KIB)]
    entries = [
        Allocation(4096, 512),
        Allocation(8192, 66 * KIB),
        Allocation(1 << 20, 66 * KIB),
        PhaseMark(1, "forward"),
        LabelMark("parameters", {4096: "weight"}),
        Free(1 << 20),
    ]
    trace, requested = build_trace(entries), build_trace(as_requested(entries, history))
    label_workspaces(trace, requested, 65 * KIB)
    assert [block.category for block in trace.blocks] == ["parameters", "workspace", "unattributed"]
    assert tensor_peaks(requested, 1) == {"forward": 100}


def test_ddp_s_buckets_are_blocks_of_their_sizes_that_nobody_has_and_that_stay() -> None:
    entries = [
        Allocation(4096, 512),
        Allocation(8192, 512),
        Allocation(12288, 512),
        LabelMark("gradients", {4096: "weight"}),
        Free(12288),
    ]
    history = [event("alloc", address, 400) for address in (4096, 8192, 12288)]
    trace, requested = build_trace(entries), build_trace(as_requested(entries, history))
    label_buckets(trace, requested, [400])
    assert [block.category for block in trace.blocks] == ["gradients", "communication", "unattributed"]
    assert requested.blocks[1].tensor
