"""A model of PyTorch's CUDA caching allocator: which memory a request gets, and how much it reserves.

Source: `c10/cuda/CUDACachingAllocator.cpp`, class `DeviceCachingAllocator` (`malloc`, `get_free_block`, `should_split`,
`alloc_found_block`, `free`, `free_block`, `emptyCache`), read at 2.4, 2.7 and 2.10. The model was compared with the
compiled code of 2.6.0, 2.8.0 and 2.15.0, which runs on simulated memory (`tests/data/allocator`). Both give the same
addresses for random requests under every setting.

Versions differ in their options and in the limits of these, for which see `memprof.allocator.settings`. Before 2.9,
garbage collection and the release of unsplittable blocks did not skip expandable segments. That matters only to a
process that changes `expandable_segments` while it runs, which is not modelled. The private pools of CUDA graphs and
`torch.cuda.MemPool` are not modelled either.
"""

from __future__ import annotations

from bisect import bisect_left

from memprof.allocator.block_pools import AllocatorBlock, FreeList, Pool
from memprof.allocator.driver import Driver, SimulatedDriver
from memprof.allocator.expandable import ExpandableSegments
from memprof.allocator.segments import Segments
from memprof.allocator.settings import SMALL_LIMIT, SMALLEST_BLOCK, UNLIMITED, AllocatorSettings
from memprof.units import format_size

Handle = AllocatorBlock


class OutOfMemory(Exception):  # noqa: N818  # the name that people search for
    """A request cannot be served, even after all cached memory that can be released was released.

    Args:
        size: The bytes requested.
        allocated_bytes: The bytes allocated at that moment.
        reserved_bytes: The bytes reserved at that moment.

    Attributes:
        size: The bytes requested.
    """

    def __init__(self, size: int, allocated_bytes: int, reserved_bytes: int) -> None:
        super().__init__(
            f"out of memory: {format_size(size)} requested, {format_size(allocated_bytes)} allocated, "
            f"{format_size(reserved_bytes)} reserved"
        )
        self.size = size


class CachingAllocator:
    """The caching allocator of one device.

    Args:
        capacity_bytes: The memory that the driver can give to the allocator, which is the device's memory without the
            CUDA context and other processes. None means that it is unlimited.
        settings: The settings of the allocator; see `memprof.allocator.settings.parse_alloc_conf`.
        total_bytes: The device's memory, to which the memory fraction applies. The default is `capacity_bytes`.
        driver: The driver to use instead of one with `capacity_bytes` of memory.

    Attributes:
        settings: The settings of the allocator.
        collects_garbage: Whether both a threshold for garbage collection and a memory fraction are set.
        allocated_bytes: The sum of the blocks in use, rounded as PyTorch counts them.
        requested_bytes: The sum of the bytes requested for blocks that are in use or waiting for another stream.
        peak_allocated_bytes: The largest `allocated_bytes` so far.
        peak_requested_bytes: The largest `requested_bytes` so far.
        small_pool: The free blocks for requests of at most `SMALL_LIMIT` bytes.
        large_pool: The free blocks for larger requests.
    """

    def __init__(
        self,
        capacity_bytes: int | None = None,
        settings: AllocatorSettings | None = None,
        *,
        total_bytes: int | None = None,
        driver: Driver | None = None,
    ) -> None:
        self.settings = settings or AllocatorSettings()
        self.allocated_bytes = self.requested_bytes = self._waiting_bytes = 0
        self.peak_allocated_bytes = self.peak_requested_bytes = self._peak_while_waiting = 0
        total = capacity_bytes if total_bytes is None else total_bytes
        fraction = self.settings.memory_fraction
        allowed = None if fraction is None or total is None else int(fraction * total)
        driver = driver or SimulatedDriver(capacity_bytes)
        self._segments = (
            ExpandableSegments(driver, self.settings, allowed, total)
            if self.settings.expandable_segments
            else Segments(driver, self.settings, allowed)
        )
        self.collects_garbage = allowed is not None and self.settings.garbage_collection_threshold > 0
        expandable = self.settings.expandable_segments
        self.small_pool = Pool(small=True, least_rest=SMALLEST_BLOCK)
        self.large_pool = Pool(small=False, least_rest=SMALLEST_BLOCK if expandable else SMALL_LIMIT + 1)
        # Whether there are rules beyond "the smallest block that is large enough". Few settings have any.
        self._has_rules = self.collects_garbage or expandable or self.settings.max_split_bytes != UNLIMITED
        self._rounded: dict[int, int] = {}  # request -> block size; a training asks for few sizes, over and over
        self._waiting: list[AllocatorBlock] = []

    @property
    def reserved_bytes(self) -> int:
        """The sum of the segments held."""
        return self._segments.reserved_bytes

    @property
    def peak_reserved_bytes(self) -> int:
        """The largest `reserved_bytes` so far."""
        return self._segments.peak_reserved_bytes

    @property
    def active_bytes(self) -> int:
        """The sum of the blocks that are in use or waiting for another stream."""
        return self.allocated_bytes + self._waiting_bytes

    @property
    def peak_active_bytes(self) -> int:
        """The largest `active_bytes` so far."""
        return max(self.peak_allocated_bytes, self._peak_while_waiting)

    def allocate(self, size: int, stream: int = 0) -> Handle:
        """Return a block for a request.

        Args:
            size: The bytes requested, at least 1.
            stream: The CUDA stream whose work may use the block.

        Raises:
            OutOfMemory: There is not enough memory, even after the cache was released.
            ValueError: The size is less than 1.
        """
        rounded = self._rounded.get(size) or self._round(size)
        pool = self.small_pool if rounded <= SMALL_LIMIT else self.large_pool
        free = pool.free[stream]
        # A prefix of an entry sorts just before it.
        index = self._search(pool, free, rounded) if self._has_rules else bisect_left(free, (rounded,))
        block = free.pop(index)[2] if index < len(free) else self._grow(pool, stream, rounded)
        if block is None:
            raise OutOfMemory(size, self.allocated_bytes, self.reserved_bytes)
        if block.size != rounded and self._should_split(block, rounded):
            block.cut(rounded).enter_pool()
        block.allocated, block.requested = True, size
        self._count_in(block.size, size)
        return block

    def free(self, handle: Handle) -> None:
        """Take a block back. Its memory can be used again at once.

        Args:
            handle: A block that `allocate` returned.

        Raises:
            ValueError: The block was freed before.
        """
        self._count_out(handle)
        self._put_back(handle)

    def free_later(self, handle: Handle) -> None:
        """Take back a block that other streams used (`record_stream`). Its memory stays active until `finish`.

        Args:
            handle: A block that `allocate` returned.

        Raises:
            ValueError: The block was freed before.
        """
        self._count_out(handle)
        handle.waiting = True
        self._waiting.append(handle)
        self._waiting_bytes += handle.size

    def finish(self, handle: Handle) -> None:
        """Make the memory of a block that `free_later` took back usable again, as the other streams are done with it.

        Args:
            handle: The block.
        """
        self._waiting.remove(handle)
        self._waiting_bytes -= handle.size
        handle.waiting = False
        self._put_back(handle)

    def empty_cache(self) -> None:
        """Wait for the other streams, then return all memory without a block in use to the driver."""
        for block in list(self._waiting):
            self.finish(block)
        self._segments.release(self.large_pool)
        self._segments.release(self.small_pool)

    def cached_blocks(self) -> list[AllocatorBlock]:
        """Return the free blocks that the allocator holds."""
        return [*self.small_pool.free_blocks(), *self.large_pool.free_blocks()]

    def has_cached(self, size: int, stream: int = 0) -> bool:
        """Return whether a request would be served without asking the driver for memory.

        Args:
            size: The bytes requested.
            stream: The CUDA stream of the request.
        """
        rounded = self.settings.round_size(size)
        pool = self.small_pool if rounded <= SMALL_LIMIT else self.large_pool
        free = pool.free[stream]
        return self._best_fit(free, rounded) < len(free) or self._segments.has_free_block(pool, stream, rounded)

    def _round(self, size: int) -> int:
        if size < 1:
            raise ValueError(f"a request of {size} bytes; PyTorch makes none for empty tensors")
        rounded = self._rounded[size] = self.settings.round_size(size)
        return rounded

    def _search(self, pool: Pool, free: FreeList, size: int) -> int:
        if self.collects_garbage:
            pool.searches += 1
        return self._best_fit(free, size)

    def _best_fit(self, free: FreeList, size: int) -> int:
        """Return the index of the smallest free block that is large enough, the lowest of equals (`get_free_block`).

        If there is no such block, or the rules forbid it, the result is the length of the list.
        """
        index = bisect_left(free, (size,))
        if index == len(free) or not self._has_rules:
            return index
        if self.settings.expandable_segments:
            index = _least_expandable(free, index)
        found, limit = free[index][0], self.settings.max_split_bytes
        whole = size < limit <= found
        too_large = size >= limit and found >= size + self.settings.max_non_split_rounding_bytes
        return len(free) if whole or too_large else index

    def _grow(self, pool: Pool, stream: int, size: int) -> AllocatorBlock | None:
        """Get memory from the driver. If it has none, release cached blocks in PyTorch's order and try again."""
        segments = self._segments
        if self.collects_garbage:
            segments.collect_garbage(self.large_pool)
        block = segments.new(pool, stream, size)
        if block is None and segments.release_large_enough(pool, stream, size):
            block = segments.new(pool, stream, size)
        if block is None:
            self.empty_cache()
            block = segments.new(pool, stream, size)
        return block

    def _should_split(self, block: AllocatorBlock, size: int) -> bool:
        pool = block.pool
        splittable = pool.small or size < self.settings.max_split_bytes or self.settings.expandable_segments
        return splittable and block.size - size >= pool.least_rest

    def _put_back(self, block: AllocatorBlock) -> None:
        self.requested_bytes -= block.requested
        block.requested = 0
        block.absorb_neighbours()
        block.enter_pool()

    def _count_in(self, size: int, requested: int) -> None:
        self.allocated_bytes = allocated = self.allocated_bytes + size
        self.requested_bytes = wanted = self.requested_bytes + requested
        if allocated > self.peak_allocated_bytes:
            self.peak_allocated_bytes = allocated
        if wanted > self.peak_requested_bytes:
            self.peak_requested_bytes = wanted
        if self._waiting_bytes:
            self._peak_while_waiting = max(self._peak_while_waiting, self.active_bytes)

    def _count_out(self, block: AllocatorBlock) -> None:
        if not block.allocated:
            raise ValueError(f"the block at {block.address:#x} was freed before")
        block.allocated = False
        self.allocated_bytes -= block.size


def _least_expandable(free: FreeList, index: int) -> int:
    """Skip blocks that could grow more than the next larger block could. This is PyTorch's best fit for them."""
    while index + 1 < len(free) and _expandable_size(free[index + 1][2]) < _expandable_size(free[index][2]):
        index += 1
    return index


def _expandable_size(block: AllocatorBlock) -> int:
    after = block.following
    return block.size + (after.size if after is not None and not after.mapped else 0)
