from __future__ import annotations

import json
import pickle
import pickletools
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from torch.cuda import _memory_viz

from memprof.allocator.caching import CachingAllocator
from memprof.allocator.settings import AllocatorSettings, parse_alloc_conf
from memprof.export import save_trace, trace_paths
from memprof.export.memory_viz import make_snapshot
from memprof.prediction.replay_trace import replay_blocks
from memprof.trace.events import Block, Event, PhaseSpan, Trace
from memprof.trace.peaks import span_peaks
from tests.unit.trace.test_timeline import traces

MODES = [None, AllocatorSettings(), parse_alloc_conf("expandable_segments:True")]


def live_at_the_end(trace: Trace) -> Counter[int]:
    held: Counter[int] = Counter()
    for number, size in trace.events:
        held[number] += size
    return Counter(size for size in held.values() if size)


def replayed(history: list[dict[str, Any]]) -> tuple[int, dict[int, int], int]:
    """The peak, what is alive at the end and what is reserved then, from the history alone."""
    live: dict[int, int] = {}
    peak = reserved = 0
    for entry in history:
        if entry["action"] == "alloc":
            assert entry["addr"] not in live
            live[entry["addr"]] = entry["size"]
        elif entry["action"] == "free_completed":
            assert live.pop(entry["addr"]) == entry["size"]
        elif entry["action"] in ("segment_alloc", "segment_map"):
            reserved += entry["size"]
        elif entry["action"] in ("segment_free", "segment_unmap"):
            reserved -= entry["size"]
        peak = max(peak, sum(live.values()))
    return peak, live, reserved


@pytest.mark.parametrize("mode", MODES, ids=["plain", "cached", "expandable"])
@settings(max_examples=50)
@given(trace=traces())
def test_a_snapshot_tells_the_whole_story(mode: AllocatorSettings | None, trace: Trace) -> None:
    snapshot = make_snapshot(trace, mode)
    peak, live, reserved = replayed(snapshot["device_traces"][0])
    assert peak == max(span.peak_bytes for span in span_peaks(trace))
    assert Counter(live.values()) == live_at_the_end(trace)
    assert sum(segment["total_size"] for segment in snapshot["segments"]) == reserved
    for segment in snapshot["segments"]:
        address = segment["address"]
        for block in segment["blocks"]:
            assert block["address"] == address  # they lie side by side
            address += block["size"]
    held = [block for segment in snapshot["segments"] for block in segment["blocks"]]
    active = {block["address"]: block["requested_size"] for block in held if block["state"] == "active_allocated"}
    assert active == live


@settings(max_examples=50)
@given(trace=traces())
def test_reserved_memory_is_that_of_the_replay(trace: Trace) -> None:
    snapshot = make_snapshot(trace, AllocatorSettings())
    levels = replay_blocks(trace, CachingAllocator()).reserved_levels
    assert replayed(snapshot["device_traces"][0])[2] == (levels[-1] if len(levels) else 0)


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path]:
    trace = make_trace()
    levels = replay_blocks(trace, CachingAllocator()).reserved_levels
    save_trace(trace, tmp_path, "sm3,momentum=0.9", AllocatorSettings(), levels)
    return trace_paths(tmp_path, "sm3,momentum=0.9")


def make_trace() -> Trace:
    blocks = [
        Block(3 << 20, "build", category="parameters"),
        Block(5 << 20, "forward", "aten::mm", "blocks.0", category="activations"),
    ]
    events = [Event(0, 3 << 20), Event(1, 5 << 20), Event(1, -(5 << 20))]
    return Trace(blocks=blocks, events=events, spans=[PhaseSpan(0, 0, "build"), PhaseSpan(1, 1, "forward")])


def test_pytorchs_own_tools_read_a_snapshot(small: tuple[Path, Path]) -> None:
    snapshot = pickle.loads(small[0].read_bytes())  # our own file, written a moment ago
    told = _memory_viz.trace(snapshot)
    assert "cudaMalloc" in told
    assert "c = a[3145728:5.0MiB]\ndel c" in told
    summed = _memory_viz.segsum(snapshot)
    assert "total_reserved: 20.0MiB" in summed
    assert "total_allocated: 3.0MiB" in summed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "MemoryViz.js" in _memory_viz.trace_plot(snapshot)


# What `unpickle` of torch/utils/viz/MemoryViz.js knows (2.13).
VIEWER_OPCODES = {
    *("PROTO", "APPEND", "APPENDS", "LIST", "TUPLE", "NEWFALSE", "NEWTRUE", "NONE", "BINGET", "BININT", "BININT1"),
    *("BININT2", "EMPTY_DICT", "EMPTY_LIST", "FRAME", "LONG1", "LONG_BINGET", "MARK", "MEMOIZE", "BINPUT", "SETITEMS"),
    *("LONG_BINPUT", "SETITEM", "DICT", "SHORT_BINUNICODE", "BINUNICODE", "STOP", "EMPTY_TUPLE", "TUPLE1", "TUPLE2"),
    *("TUPLE3", "BINFLOAT"),
}


def test_the_viewers_own_reader_knows_every_opcode(small: tuple[Path, Path]) -> None:
    found = list(pickletools.genops(small[0].read_bytes()))
    assert {opcode.name for opcode, _, _ in found} <= VIEWER_OPCODES
    assert found[0][1] == 4


def test_perfetto_shows_phases_operators_and_counters(small: tuple[Path, Path]) -> None:
    events = json.loads(small[1].read_text())["traceEvents"]
    slices = [(event["name"], event["ts"], event["dur"]) for event in events if event["ph"] == "X"]
    assert slices == [("build", 0, 1), ("forward", 1, 2), ("aten::mm", 1, 1)]
    counters = [(event["name"], event["ts"], event["args"]["bytes"]) for event in events if event["ph"] == "C"]
    assert ("allocated", 1, 8 << 20) in counters
    assert ("activations", 2, 0) in counters
    assert ("reserved", 0, 20 << 20) in counters


@pytest.mark.parametrize("spec", ["sm3", "../../etc", "a/b:C,x='y z'", "🔥", "..."])
def test_files_stay_in_their_folder(spec: str, tmp_path: Path) -> None:
    for path in trace_paths(tmp_path, spec):
        assert path.parent == tmp_path
        assert not path.name.startswith(".")
