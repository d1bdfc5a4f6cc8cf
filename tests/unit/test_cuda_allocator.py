"""What the CUDA recorder makes of a snapshot, on the fields that torch.cuda.memory documents."""

from __future__ import annotations

from memprof.tracing.attribution import build_trace
from memprof.tracing.cuda_allocator import living_blocks, signed_sizes
from memprof.tracing.events import Allocation, Free, LabelMark, PhaseMark
from memprof.tracing.marks import MARK_BYTES, place_marks

SEGMENTS = [
    {
        "device": 0,
        "address": 4096,
        "total_size": 2097152,
        "stream": 0,
        "blocks": [
            {"address": 4096, "size": 1024, "requested_size": 1000, "state": "active_allocated"},
            {"address": 5120, "size": 512, "requested_size": 0, "state": "inactive"},
            {"address": 5632, "size": 512, "requested_size": 400, "state": "active_pending_free"},
        ],
    }
]
HISTORY = [
    {"action": "segment_alloc", "addr": 9000, "size": 2097152, "stream": 0},
    {"action": "alloc", "addr": 9000, "size": MARK_BYTES, "stream": 0},
    {"action": "free_requested", "addr": 9000, "size": MARK_BYTES, "stream": 0},
    {"action": "free_completed", "addr": 9000, "size": MARK_BYTES, "stream": 0},
    {"action": "alloc", "addr": 9512, "size": 300, "stream": 7},
    {"action": "free_requested", "addr": 4096, "size": 1000, "stream": 0},
    {"action": "free_completed", "addr": 4096, "size": 1000, "stream": 0},
]


def test_only_blocks_in_use_live_at_the_start():
    assert living_blocks(SEGMENTS) == [Allocation(4096, 1000, 0)]


def test_frees_count_when_requested_and_segments_do_not():
    assert signed_sizes(HISTORY) == [
        (9000, MARK_BYTES, 0),
        (9000, -MARK_BYTES, 0),
        (9512, 300, 7),
        (4096, -1000, 0),
    ]


def test_snapshot_and_history_make_one_trace():
    marks = [(9000, PhaseMark(4, "forward"))]
    entries = [
        *living_blocks(SEGMENTS),
        LabelMark("parameters", {4096: "w"}),
        *place_marks(signed_sizes(HISTORY), marks),
    ]
    assert entries[2:] == [PhaseMark(4, "forward"), Allocation(9512, 300, 7), Free(4096)]
    trace = build_trace(entries)
    assert [block.category for block in trace.blocks] == ["parameters", "unattributed"]
    assert trace.blocks[1].stream == 7
    assert [span.phase for span in trace.spans] == ["build", "forward"]
