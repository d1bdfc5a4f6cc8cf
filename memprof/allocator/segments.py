"""Where the caching allocator's memory comes from and how it is returned: the segments of the driver.

Source: `c10/cuda/CUDACachingAllocator.cpp`, class `DeviceCachingAllocator`: `alloc_block`, `release_block`,
`release_blocks`, `release_available_cached_blocks`, `garbage_collect_cached_blocks`. Expandable segments are in
`memprof.allocator.expandable`.
"""

from __future__ import annotations

from bisect import bisect_left

from memprof.allocator.block_pools import AllocatorBlock, Pool
from memprof.allocator.driver import Driver
from memprof.allocator.settings import UNLIMITED, AllocatorSettings


class Segments:
    """Segments of fixed size. Each is one `cudaMalloc`.

    Args:
        driver: the driver, which gives and takes memory.
        settings: the settings of the allocator.
        allowed_bytes: the most bytes that may be reserved (the memory fraction); None if only the driver sets a limit.

    Attributes:
        reserved_bytes: the sum of the segments held.
        peak_reserved_bytes: the largest `reserved_bytes` so far.
    """

    def __init__(self, driver: Driver, settings: AllocatorSettings, allowed_bytes: int | None) -> None:
        self.driver = driver
        self.settings = settings
        self.allowed_bytes = allowed_bytes
        self.reserved_bytes = 0
        self.peak_reserved_bytes = 0

    def new(self, pool: Pool, stream: int, size: int) -> AllocatorBlock | None:
        """Return a free block that is in no pool, or None if there is not enough memory.

        Args:
            pool: the pool of the request.
            stream: the CUDA stream of the request.
            size: the rounded bytes of the request, which is the least size of the block.
        """
        segment = self.settings.segment_size(size)
        if not self._allowed(segment):
            return None
        address = self.driver.allocate(segment, stream)
        if address is None:
            return None
        self._reserve(segment)
        return AllocatorBlock(pool, stream, address, segment)

    def has_free_block(self, pool: Pool, stream: int, size: int) -> bool:
        """Return whether `new` would find memory without asking the driver.

        Args:
            pool: the pool of the request.
            stream: the CUDA stream of the request.
            size: the rounded bytes of the request.
        """
        return False

    def release(self, pool: Pool) -> None:
        """Return every free block that is a whole segment to the driver (`release_blocks`).

        Args:
            pool: the pool whose free blocks are released.
        """
        for block in pool.free_blocks():
            if not block.split:
                self._release_block(block)

    def release_large_enough(self, pool: Pool, stream: int, size: int) -> bool:
        """Release the unsplittable free blocks that a request needs (`release_available_cached_blocks`).

        This does nothing unless `max_split_size` is set.

        Args:
            pool: the pool of the request.
            stream: the CUDA stream of the request.
            size: the rounded bytes of the request.

        Returns:
            Whether enough memory was released.
        """
        limit = self.settings.max_split_bytes
        if limit == UNLIMITED:
            return False
        needed, free = max(size, limit), pool.free[stream]
        index = bisect_left(free, (needed,))  # a prefix of an entry sorts just before it
        if index < len(free):
            self._release_block(free[index][2])
            return True
        released = 0
        while free and released < needed and free[-1][0] >= limit:
            released += free[-1][0]
            self._release_block(free[-1][2])
        return released >= needed

    def collect_garbage(self, pool: Pool) -> None:
        """Release the free segments that were unused for longest, while more is reserved than the threshold.

        The segments older than the average go first, then the average is computed again
        (`garbage_collect_cached_blocks`). PyTorch looks only at the large pool.

        Args:
            pool: the large pool.
        """
        excess = self.reserved_bytes - int(self.settings.garbage_collection_threshold * (self.allowed_bytes or 0))
        candidates = [block for block in pool.free_blocks() if not block.split]
        total_age, progress = sum(pool.searches - block.born for block in candidates), True
        while excess > 0 and candidates and progress:
            mean_age = total_age / len(candidates)
            old = [block for block in candidates if pool.searches - block.born >= mean_age]
            candidates = [block for block in candidates if pool.searches - block.born < mean_age]
            progress = bool(old)
            for block in old:
                excess -= block.size
                total_age -= pool.searches - block.born
                self._release_block(block)

    def _release_block(self, block: AllocatorBlock) -> None:
        block.leave_pool()
        self.driver.free(block.address, block.size)
        self.reserved_bytes -= block.size

    def _allowed(self, segment: int) -> bool:
        return self.allowed_bytes is None or self.reserved_bytes + segment <= self.allowed_bytes

    def _reserve(self, size: int) -> None:
        self.reserved_bytes += size
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
