"""What the caching allocator is known to do."""

from __future__ import annotations

import pytest

from memprof.allocator.caching import CachingAllocator, OutOfMemory
from memprof.allocator.driver import SimulatedDriver
from memprof.allocator.replay_events import AllocatorTimeline, replay
from memprof.allocator.settings import AllocatorSettings
from memprof.trace.events import Block, Event, Trace

MIB = 2**20


def trace_of(*sizes: int) -> Trace:
    """Return a trace that allocates a block for each positive number; -n frees the n-th block."""
    trace = Trace()
    for size in sizes:
        if size > 0:
            trace.events.append(Event(len(trace.blocks), size))
            trace.blocks.append(Block(size, "forward"))
        else:
            trace.events.append(Event(-size - 1, -trace.blocks[-size - 1].size))
    return trace


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 1, 10 * MIB, 10 * MIB),  # rounded first, then it is no longer below 10 MiB
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (11 * MIB, 12 * MIB, 12 * MIB),  # a remainder of 1 MiB or less stays in the block
        (30 * MIB + 1, 30 * MIB + 512, 32 * MIB),
    ],
)
def test_one_request(size: int, allocated: int, reserved: int) -> None:
    allocator = CachingAllocator()
    allocator.allocate(size)
    assert (allocator.requested_bytes, allocator.allocated_bytes, allocator.reserved_bytes) == (
        size,
        allocated,
        reserved,
    )


def test_a_cublas_workspace_opens_a_segment_of_20_mib() -> None:
    """https://discuss.pytorch.org/t/178671: 8.125 MiB leave 12,451,840 B of 20 MiB inactive."""
    allocator = CachingAllocator()
    block = allocator.allocate(8_519_680)
    assert allocator.reserved_bytes == 20_971_520
    assert allocator.reserved_bytes - allocator.allocated_bytes == 12_451_840
    assert allocator.allocate(12_451_840).address == block.address + 8_519_680


def test_the_best_fit_is_the_smallest_then_the_lowest() -> None:
    allocator = CachingAllocator(driver=SimulatedDriver(None, falling=False))
    blocks = [allocator.allocate(size * MIB) for size in (40, 20, 20)]
    for block in blocks:
        allocator.free(block)
    assert allocator.allocate(15 * MIB).address == blocks[1].address
    assert allocator.allocate(20 * MIB).address == blocks[2].address
    assert allocator.allocate(20 * MIB).address == blocks[0].address
    assert allocator.reserved_bytes == 80 * MIB


def test_newer_segments_lie_below_older_ones() -> None:
    allocator = CachingAllocator()
    older, newer = allocator.allocate(30 * MIB), allocator.allocate(30 * MIB)
    assert newer.address + 30 * MIB <= older.address
    allocator.free(older)
    allocator.free(newer)
    assert allocator.allocate(30 * MIB).address == newer.address


def test_each_stream_has_its_own_blocks() -> None:
    allocator = CachingAllocator()
    allocator.free(allocator.allocate(5 * MIB, stream=0))
    allocator.allocate(5 * MIB, stream=7)
    assert allocator.reserved_bytes == 40 * MIB


def test_small_and_large_requests_do_not_share_segments() -> None:
    allocator = CachingAllocator()
    allocator.free(allocator.allocate(5 * MIB))
    allocator.allocate(1000)
    assert allocator.reserved_bytes == 22 * MIB


def test_a_block_that_another_stream_uses_is_active_until_that_is_done() -> None:
    allocator = CachingAllocator()
    block = allocator.allocate(15 * MIB)
    allocator.free_later(block)
    assert (allocator.allocated_bytes, allocator.active_bytes) == (0, 16 * MIB)
    assert allocator.allocate(15 * MIB).address != block.address
    allocator.finish(block)
    assert allocator.active_bytes == 16 * MIB
    assert allocator.allocate(15 * MIB).address == block.address


def test_the_cache_is_released_before_memory_runs_out() -> None:
    allocator = CachingAllocator(100 * MIB)
    allocator.free(allocator.allocate(60 * MIB))
    allocator.allocate(80 * MIB)
    assert (allocator.reserved_bytes, allocator.peak_reserved_bytes) == (80 * MIB, 80 * MIB)
    with pytest.raises(OutOfMemory, match=r"out of memory: 30.00 MiB requested, 80.00 MiB allocated, 80.00 MiB res"):
        allocator.allocate(30 * MIB)


def test_a_split_segment_cannot_be_released() -> None:
    allocator = CachingAllocator(20 * MIB)
    blocks = [allocator.allocate(5 * MIB) for _ in range(4)]
    for block in blocks[:3]:
        allocator.free(block)
    allocator.allocate(15 * MIB)
    with pytest.raises(OutOfMemory):
        allocator.allocate(1)


def test_expandable_segments_do_not_strand_freed_memory() -> None:
    """Growing sizes, each freed before the next: fixed segments keep them all, one that grows keeps the largest."""
    peaks = []
    for expandable in (False, True):
        allocator = CachingAllocator(settings=AllocatorSettings(expandable_segments=expandable))
        for size in range(20, 120, 20):
            allocator.free(allocator.allocate(size * MIB))
        peaks.append(allocator.peak_reserved_bytes // MIB)
    assert peaks == [20 + 40 + 60 + 80 + 100, 100]


def test_an_expandable_segment_takes_whole_pages_and_gives_them_back() -> None:
    allocator = CachingAllocator(settings=AllocatorSettings(expandable_segments=True))
    first = allocator.allocate(30 * MIB)
    second = allocator.allocate(MIB // 2)
    assert allocator.reserved_bytes == 40 * MIB + 2 * MIB
    allocator.free(second)
    allocator.empty_cache()
    assert allocator.reserved_bytes == 40 * MIB  # the page that the first block ends in is in use
    allocator.free(first)
    allocator.empty_cache()
    assert allocator.reserved_bytes == 0


def test_unsplittable_blocks_serve_only_requests_near_their_size() -> None:
    allocator = CachingAllocator(settings=AllocatorSettings(max_split_bytes=30 * MIB))
    block = allocator.allocate(50 * MIB)
    allocator.free(block)
    assert allocator.allocate(20 * MIB).address != block.address
    assert allocator.allocate(30 * MIB).address != block.address
    assert allocator.allocate(31 * MIB).address == block.address


def test_only_as_many_unsplittable_blocks_are_released_as_a_request_needs() -> None:
    allocator = CachingAllocator(120 * MIB, AllocatorSettings(max_split_bytes=30 * MIB))
    for block in [allocator.allocate(40 * MIB) for _ in range(3)]:
        allocator.free(block)
    allocator.allocate(80 * MIB)
    assert allocator.reserved_bytes == (40 + 80) * MIB


def test_garbage_collection_releases_what_is_not_reused() -> None:
    settings = AllocatorSettings(garbage_collection_threshold=0.5, memory_fraction=1.0)
    allocator = CachingAllocator(1000 * MIB, settings)
    idle, reused = allocator.allocate(400 * MIB), allocator.allocate(120 * MIB)
    allocator.free(idle)
    allocator.free(reused)
    for _ in range(5):
        allocator.free(allocator.allocate(120 * MIB))
    allocator.allocate(410 * MIB)  # 520 of 1000 MiB are reserved, above the threshold of 500
    assert allocator.reserved_bytes == (120 + 410) * MIB
    assert allocator.allocate(120 * MIB).address == reused.address


def test_the_memory_fraction_is_of_the_whole_device() -> None:
    allocator = CachingAllocator(90 * MIB, AllocatorSettings(memory_fraction=0.5), total_bytes=100 * MIB)
    allocator.allocate(50 * MIB)
    with pytest.raises(OutOfMemory):
        allocator.allocate(1)


def test_mistakes_of_the_caller_are_told() -> None:
    allocator = CachingAllocator()
    with pytest.raises(ValueError, match="a request of 0 bytes"):
        allocator.allocate(0)
    block = allocator.allocate(1)
    allocator.free(block)
    with pytest.raises(ValueError, match="was freed before"):
        allocator.free(block)


def test_a_trace_is_replayed() -> None:
    trace = trace_of(30 * MIB, 50 * MIB, -1, 40 * MIB, -2, -3)
    trace.events.insert(2, Event(0, 0))  # left out by the attribution
    report = replay(trace, CachingAllocator(1000 * MIB))
    assert report.peak_requested_bytes == report.peak_allocated_bytes == 90 * MIB
    assert report.peak_reserved_bytes == 120 * MIB
    assert report.fragmentation_bytes == 30 * MIB
    assert not report.out_of_memory
    assert [point.reserved_bytes // MIB for point in report.timeline] == [30, 80, 80, 80, 120, 120, 120]


def test_a_replay_ends_where_memory_runs_out() -> None:
    report = replay(trace_of(30 * MIB, -1, 50 * MIB, 30 * MIB, 10 * MIB), CachingAllocator(70 * MIB))
    assert report.out_of_memory_event == 3
    assert report.peak_allocated_bytes == 50 * MIB
    assert report.timeline[-1].event == 2


def test_streams_of_a_trace_are_kept_apart() -> None:
    trace = trace_of(5 * MIB, -1, 5 * MIB)
    trace.blocks[1].stream = 3
    assert replay(trace, CachingAllocator()).peak_reserved_bytes == 40 * MIB


@pytest.mark.parametrize("n_events", [1, 10, 511, 513, 20_000])
def test_the_timeline_keeps_the_peaks(n_events: int) -> None:
    allocator = CachingAllocator()
    timeline = AllocatorTimeline(n_events)
    high = n_events // 3
    for event in range(n_events):
        block = allocator.allocate(100 * MIB if event == high else MIB * (1 + event % 7))
        timeline.add(event, allocator)
        if event != high:
            allocator.free(block)
    points = list(timeline.points())
    assert len(points) <= 512
    assert [point.event for point in points] == sorted({point.event for point in points})
    assert max(point.allocated_bytes for point in points) == allocator.peak_allocated_bytes
    assert max(point.reserved_bytes for point in points) == allocator.peak_reserved_bytes
    assert len(points) == n_events or len(points) >= 250
