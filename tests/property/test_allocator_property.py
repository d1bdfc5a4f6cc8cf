"""The allocator against the slow and obvious one, and what must hold of it whatever it serves."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from memprof.allocator.block_pools import AllocatorBlock
from memprof.allocator.caching import CachingAllocator, OutOfMemory
from memprof.allocator.driver import SimulatedDriver
from memprof.allocator.settings import AllocatorSettings
from tests.data.allocator.slow_allocator import SlowAllocator

MIB = 2**20
CAPACITY = 256 * MIB

sizes = st.one_of(
    st.integers(1, 4096),
    st.integers(1, 2 * MIB),
    st.integers(MIB, 24 * MIB),
    st.integers(10 * MIB, 100 * MIB),
    st.sampled_from([511, 512, 513, MIB, MIB + 1, 10 * MIB - 1, 10 * MIB, 20 * MIB]),
)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("allocate"), sizes, st.sampled_from([0, 0, 0, 7])),
        st.tuples(st.sampled_from(["free", "free", "free_later", "finish"]), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("empty"), st.just(0), st.just(0)),
    ),
    min_size=15,
    max_size=80,
)
confs = st.builds(
    AllocatorSettings,
    max_split_bytes=st.sampled_from([2**63, 2**63, 20 * MIB, 40 * MIB]),
    max_non_split_rounding_bytes=st.sampled_from([20 * MIB, 50 * MIB]),
    roundup_divisions=st.sampled_from([(0,) * 16, (4,) * 16, (8, 2, 0, 1) * 4]),
    garbage_collection_threshold=st.sampled_from([0.0, 0.3]),
    expandable_segments=st.booleans(),
    memory_fraction=st.sampled_from([None, 0.8]),
)


class Pair:
    """One sequence of calls on both allocators."""

    def __init__(self, conf: AllocatorSettings) -> None:
        rising = SimulatedDriver(CAPACITY, falling=False)  # as in the slow one
        self.fast, self.slow = CachingAllocator(CAPACITY, conf, driver=rising), SlowAllocator(CAPACITY, conf)
        self.live: list[AllocatorBlock] = []
        self.waiting: list[AllocatorBlock] = []

    def do(self, operation: str, number: int, stream: int) -> None:
        if operation == "allocate":
            self.allocate(number, stream)
        elif operation == "empty":
            self.empty_cache()
        elif operation == "finish" and self.waiting:
            block = self.waiting.pop(number % len(self.waiting))
            self.slow.free(block.address)
            self.fast.finish(block)
        elif operation == "free" and self.live:
            block = self.live.pop(number % len(self.live))
            self.slow.free(block.address)
            self.fast.free(block)
        elif operation == "free_later" and self.live:
            block = self.live.pop(number % len(self.live))
            self.slow.free(block.address, later=True)
            self.fast.free_later(block)
            self.waiting.append(block)

    def allocate(self, size: int, stream: int) -> None:
        expected = self.slow.allocate(size, stream)
        try:
            block = self.fast.allocate(size, stream)
        except OutOfMemory:
            assert expected is None
        else:
            assert block.address == expected
            self.live.append(block)
        self.waiting = [block for block in self.waiting if block.waiting]

    def empty_cache(self) -> None:
        self.slow.empty_cache()
        self.fast.empty_cache()
        self.waiting = []

    def agree(self) -> None:
        assert self.fast.reserved_bytes == self.slow.reserved
        assert self.fast.allocated_bytes == self.slow.total("used")
        assert self.fast.active_bytes == self.slow.total("used", "waiting")
        assert self.fast.requested_bytes == sum(cell.requested for _, cell in self.slow.cells("used", "waiting"))


@given(confs, operations)
@settings(max_examples=300)
def test_the_fast_allocator_does_what_the_slow_one_does(
    conf: AllocatorSettings, calls: list[tuple[str, int, int]]
) -> None:
    pair = Pair(conf)
    for call in calls:
        pair.do(*call)
        pair.agree()


@given(confs, operations)
@settings(max_examples=150)
def test_blocks_tile_their_segments_and_free_ones_are_never_neighbours(
    conf: AllocatorSettings, calls: list[tuple[str, int, int]]
) -> None:
    pair = Pair(conf)
    for call in calls:
        pair.do(*call)
        pools = (pair.fast.small_pool, pair.fast.large_pool)
        holes = [hole for pool in pools for entries in pool.holes.values() for _, hole in entries]
        free = [block for pool in pools for block in pool.free_blocks()]
        used = pair.live + pair.waiting
        everything = sorted([*holes, *free, *used], key=lambda block: block.address)
        for before, after in pairwise(everything):
            touching = before.following is after
            assert touching == (after.previous is before)
            if touching:
                assert before.address + before.size == after.address
                assert before.in_use or after.in_use or before.mapped != after.mapped
            else:
                assert before.address + before.size <= after.address
        assert sum(block.size for block in free + used) == pair.fast.reserved_bytes <= CAPACITY
        assert pair.fast.reserved_bytes <= pair.fast.peak_reserved_bytes


@given(operations)
@settings(max_examples=50)
def test_an_allocator_that_got_everything_back_reserves_nothing_after_empty_cache(
    calls: list[tuple[str, int, int]],
) -> None:
    for expandable in (False, True):
        pair = Pair(AllocatorSettings(expandable_segments=expandable))
        for call in calls:
            pair.do(*call)
        for block in pair.live:
            pair.fast.free(block)
        pair.fast.empty_cache()
        assert pair.fast.reserved_bytes == pair.fast.allocated_bytes == pair.fast.active_bytes == 0
