"""Expandable segments: for each pool and stream, one virtual range that grows page by page.

Source: `c10/cuda/CUDACachingAllocator.cpp`: `struct ExpandableSegment` and, in `DeviceCachingAllocator`,
`find_expandable_block`, `map_block`, `try_allocate_expandable_block`, `unmap_block`, `release_blocks`.
"""

from __future__ import annotations

from memprof.allocator.block_pools import AllocatorBlock, Pool
from memprof.allocator.driver import Driver
from memprof.allocator.segments import Segments
from memprof.allocator.settings import SMALL_SEGMENT, AllocatorSettings

_WITHOUT_A_LIMIT = 2**41  # the size of a virtual range when the device's memory is not given


class ExpandableSegments(Segments):
    """Segments that grow in place.

    Pages are 2 MiB in the small pool. In the large pool they have the size of a large segment (20 MiB).

    Args:
        driver: the driver, which gives and takes pages.
        settings: the settings of the allocator.
        allowed_bytes: the most bytes that may be reserved; None if only the driver sets a limit.
        total_bytes: the device's memory, or None if it is not known. A virtual range spans nine eighths of it.
    """

    def __init__(
        self, driver: Driver, settings: AllocatorSettings, allowed_bytes: int | None, total_bytes: int | None
    ) -> None:
        super().__init__(driver, settings, allowed_bytes)
        self._range_bytes = _WITHOUT_A_LIMIT if total_bytes is None else total_bytes + total_bytes // 8
        self._range_starts: dict[int, int] = {}  # end of a range -> its start

    def new(self, pool: Pool, stream: int, size: int) -> AllocatorBlock | None:
        """See `Segments.new`. As in PyTorch, the memory fraction's limit is checked for a segment of fixed size."""
        if not self._allowed(self.settings.segment_size(size)):
            return None
        block = _find_expandable_block(pool, stream, size) or self._new_range(pool, stream)
        if not block.mapped and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            hole = block.following
            assert hole is not None  # `_find_expandable_block` made sure of it
            if not self._map(hole, min(hole.size, size - block.size)):
                return None
            block = hole  # the hole has merged with the free block before it
        block.leave_pool()
        return block

    def has_free_block(self, pool: Pool, stream: int, size: int) -> bool:
        """Return whether the first block from which a request could be served is free, mapped and large enough.

        The best fit may have passed over that block.

        Args:
            pool: the pool of the request.
            stream: the CUDA stream of the request.
            size: the rounded bytes of the request.
        """
        block = _find_expandable_block(pool, stream, size)
        return block is not None and block.mapped and block.size >= size

    def release(self, pool: Pool) -> None:
        """Return the whole pages within free blocks to the driver, and drop the ranges that are then empty.

        Args:
            pool: the pool whose free blocks are released.
        """
        for block in pool.free_blocks():
            self._unmap(block)

    def release_large_enough(self, pool: Pool, stream: int, size: int) -> bool:
        """Return False, as PyTorch skips expandable segments in this step.

        Args:
            pool: the pool of the request.
            stream: the CUDA stream of the request.
            size: the rounded bytes of the request.
        """
        return False

    def collect_garbage(self, pool: Pool) -> None:
        """Do nothing, as PyTorch skips expandable segments in garbage collection.

        Args:
            pool: the pool.
        """

    def _page(self, pool: Pool) -> int:
        return SMALL_SEGMENT if pool.small else self.settings.large_segment_bytes

    def _new_range(self, pool: Pool, stream: int) -> AllocatorBlock:
        pages = -(-self._range_bytes // self._page(pool))
        length = pages * self._page(pool)
        address = self.driver.reserve(length, stream)
        block = AllocatorBlock(pool, stream, address, length, address + length)
        self._range_starts[block.segment_end] = address
        block.mapped = False
        block.enter_pool()
        return block

    def _map(self, hole: AllocatorBlock, size: int) -> bool:
        """Put whole pages behind the first `size` bytes of a hole, which becomes a free block in its pool."""
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

    def _unmap(self, block: AllocatorBlock) -> None:
        """Take the memory from behind the whole pages within a free block. The parts on either side stay free."""
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


def _find_expandable_block(pool: Pool, stream: int, size: int) -> AllocatorBlock | None:
    """Return the lowest block from which adjacent free blocks and holes add up to `size` bytes.

    The search starts at each hole, or at the free block before it.
    """
    for _, hole in pool.holes[stream]:
        before = hole.previous
        start = before if before is not None and not before.in_use else hole
        if _suffices(start, size):
            return start
    return None


def _suffices(block: AllocatorBlock | None, size: int) -> bool:
    found = 0
    while found < size and block is not None and not block.in_use:
        found += block.size
        block = block.following
    return found >= size
