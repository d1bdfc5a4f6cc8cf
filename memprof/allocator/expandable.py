"""Expandable segments: one virtual range per pool and stream that grows page by page.

Source: `c10/cuda/CUDACachingAllocator.cpp`: `struct ExpandableSegment` and, in `DeviceCachingAllocator`,
`find_expandable_block`, `map_block`, `try_allocate_expandable_block`, `unmap_block`, `release_blocks`.
"""

from __future__ import annotations

from memprof.allocator.blocks import Block, Pool
from memprof.allocator.driver import Driver
from memprof.allocator.segments import Segments
from memprof.allocator.settings import SMALL_SEGMENT, AllocatorSettings

_WITHOUT_A_LIMIT = 2**41  # the size of a virtual range when the device's memory is not given


class ExpandableSegments(Segments):
    """Segments that grow where they lie; pages are 2 MiB in the small pool, a large segment (20 MiB) in the other.

    Args:
        driver: gives and takes pages.
        settings: of the allocator.
        allowed_bytes: the most that may be reserved; None for no limit but the driver's.
        total_bytes: the device's memory, of which a range spans nine eighths; None if not given.
    """

    def __init__(
        self, driver: Driver, settings: AllocatorSettings, allowed_bytes: int | None, total_bytes: int | None
    ) -> None:
        super().__init__(driver, settings, allowed_bytes)
        self._range_bytes = _WITHOUT_A_LIMIT if total_bytes is None else total_bytes + total_bytes // 8
        self._range_starts: dict[int, int] = {}  # end of a range -> where it begins

    def new(self, pool: Pool, stream: int, size: int) -> Block | None:
        """See `Segments.new`; the fraction's limit counts a fixed segment, as in PyTorch."""
        if not self._allowed(self.settings.segment_size(size)):
            return None
        block = _find_room(pool, stream, size) or self._new_range(pool, stream)
        if not block.mapped and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            hole = block.following
            assert hole is not None  # there is room
            if not self._map(hole, min(hole.size, size - block.size)):
                return None
            block = hole  # it has taken in the free block before it
        block.leave_pool()
        return block

    def has_room(self, pool: Pool, stream: int, size: int) -> bool:
        """Say whether a free block at the lowest place with room suffices; the best fit may have passed it over."""
        block = _find_room(pool, stream, size)
        return block is not None and block.mapped and block.size >= size

    def release(self, pool: Pool) -> None:
        """Give the whole pages within free blocks back, and ranges that are then empty."""
        for block in pool.free_blocks():
            self._unmap(block)

    def release_large_enough(self, pool: Pool, stream: int, size: int) -> bool:
        """Return False: expandable segments are left out of this step."""
        return False

    def collect_garbage(self, pool: Pool) -> None:
        """Do nothing: expandable segments are left out of garbage collection."""

    def _page(self, pool: Pool) -> int:
        return SMALL_SEGMENT if pool.small else self.settings.large_segment_bytes

    def _new_range(self, pool: Pool, stream: int) -> Block:
        pages = -(-self._range_bytes // self._page(pool))
        length = pages * self._page(pool)
        address = self.driver.reserve(length, stream)
        block = Block(pool, stream, address, length, address + length)
        self._range_starts[block.segment_end] = address
        block.mapped = False
        block.enter_pool()
        return block

    def _map(self, hole: Block, size: int) -> bool:
        """Put whole pages behind the first `size` bytes of a hole; it becomes a free block in its pool."""
        page = self._page(hole.pool)
        mapped = -(-size // page) * page
        if not self.driver.map(hole.address, mapped):
            return False
        hole.leave_pool()
        if mapped < hole.size:
            hole.cut(mapped).enter_pool()
        hole.mapped = True
        hole.absorb_neighbours()
        hole.enter_pool()
        self._reserve(mapped)
        return True

    def _unmap(self, block: Block) -> None:
        """Take the memory from behind the whole pages within a free block; what is left on its sides stays free."""
        page = self._page(block.pool)
        base = self._range_starts[block.segment_end]
        start = base - (base - block.address) // page * page
        end = base + (block.address + block.size - base) // page * page
        if start >= end:
            return
        block.leave_pool()
        if start > block.address:
            before, block = block, block.cut(start - block.address)
            before.enter_pool()
        if end < block.address + block.size:
            block.cut(end - block.address).enter_pool()
        self.driver.unmap(block.address, block.size)
        self.reserved_bytes -= block.size
        block.mapped = False
        block.absorb_neighbours()
        if block.split:
            block.enter_pool()
        else:
            del self._range_starts[block.segment_end]


def _find_room(pool: Pool, stream: int, size: int) -> Block | None:
    """Return the lowest hole, or the free block before it, from which free bytes and holes add up to `size`."""
    for _, hole in pool.holes[stream]:
        before = hole.previous
        start = before if before is not None and not before.in_use else hole
        if _room(start, size):
            return start
    return None


def _room(block: Block | None, size: int) -> bool:
    found = 0
    while found < size and block is not None and not block.in_use:
        found += block.size
        block = block.following
    return found >= size
