"""PyTorch's CUDA caching allocator as a model: which memory a request gets, and what that reserves.

Source: `c10/cuda/CUDACachingAllocator.cpp`, class `DeviceCachingAllocator` (`malloc`, `get_free_block`,
`should_split`, `alloc_found_block`, `free`, `free_block`, `emptyCache`), read at 2.4, 2.7 and 2.10, and compared
with the compiled code of 2.6.0, 2.8.0 and 2.15.0: it runs on memory that is not there (`tests/data/allocator`) and
gives the same addresses on random requests under every setting.

What differs between versions: options and their limits, see `memprof.allocator.settings`; before 2.9 garbage
collection and the release of unsplittable blocks did not step over expandable segments, which matters only to a
process that changes `expandable_segments` half-way and is not modelled. Neither are CUDA graphs' private pools and
`torch.cuda.MemPool`.
"""

from __future__ import annotations

from bisect import bisect_left

from memprof.allocator.blocks import Block, FreeList, Pool
from memprof.allocator.driver import Driver, Memory
from memprof.allocator.expandable import ExpandableSegments
from memprof.allocator.segments import Segments
from memprof.allocator.settings import SMALL_LIMIT, SMALLEST_BLOCK, UNLIMITED, AllocatorSettings
from memprof.units import format_size

Handle = Block


class OutOfMemory(Exception):  # noqa: N818  # the name that people search for
    """A request cannot be served, even after everything in the cache that can be released was released.

    Attributes:
        size: bytes requested.
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
        capacity_bytes: what the driver can give it, that is the device's memory without the CUDA context and other
            processes; None for without end.
        settings: see `memprof.allocator.settings.parse_alloc_conf`.
        total_bytes: the device's memory, to which the memory fraction applies; `capacity_bytes` if not given.
        driver: in place of a driver with `capacity_bytes` of memory.

    Attributes:
        settings: as given.
        collects_garbage: a threshold and a memory fraction are set.
        allocated_bytes: sum of the blocks in use, rounded as PyTorch counts them.
        requested_bytes: sum of what was asked for, of blocks in use or waiting.
        peak_allocated_bytes: largest `allocated_bytes` so far; likewise the other one.
        peak_requested_bytes: see there.
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
        driver = driver or Memory(capacity_bytes)
        self._segments = (
            ExpandableSegments(driver, self.settings, allowed, total)
            if self.settings.expandable_segments
            else Segments(driver, self.settings, allowed)
        )
        self.collects_garbage = allowed is not None and self.settings.garbage_collection_threshold > 0
        expandable = self.settings.expandable_segments
        self._small = Pool(small=True, least_rest=SMALLEST_BLOCK)
        self._large = Pool(small=False, least_rest=SMALLEST_BLOCK if expandable else SMALL_LIMIT + 1)
        # The rules beyond "the smallest block that is large enough", which few settings have.
        self._has_rules = self.collects_garbage or expandable or self.settings.max_split_bytes != UNLIMITED
        self._rounded: dict[int, int] = {}  # sizes asked for; a training asks for few, over and over
        self._waiting: list[Block] = []

    @property
    def reserved_bytes(self) -> int:
        """Sum of the segments held."""
        return self._segments.reserved_bytes

    @property
    def peak_reserved_bytes(self) -> int:
        """Largest `reserved_bytes` so far."""
        return self._segments.peak_reserved_bytes

    @property
    def active_bytes(self) -> int:
        """Sum of the blocks in use or waiting for another stream."""
        return self.allocated_bytes + self._waiting_bytes

    @property
    def peak_active_bytes(self) -> int:
        """Largest `active_bytes` so far."""
        return max(self.peak_allocated_bytes, self._peak_while_waiting)

    def allocate(self, size: int, stream: int = 0) -> Handle:
        """Return a block for `size` bytes, at least 1, that work on `stream` may use.

        Raises:
            OutOfMemory: the memory is not there; the cache has then been released.
        """
        rounded = self._rounded.get(size) or self._round(size)
        pool = self._small if rounded <= SMALL_LIMIT else self._large
        free = pool.free[stream]
        # A prefix sorts just before.
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
        """Take a block back: its memory can be used again at once."""
        self._count_out(handle)
        self._put_back(handle)

    def free_later(self, handle: Handle) -> None:
        """Take a block back that other streams used: its memory stays active until `finish` (`record_stream`)."""
        self._count_out(handle)
        handle.waiting = True
        self._waiting.append(handle)
        self._waiting_bytes += handle.size

    def finish(self, handle: Handle) -> None:
        """The other streams are done with a block that was freed by `free_later`."""
        self._waiting.remove(handle)
        self._waiting_bytes -= handle.size
        handle.waiting = False
        self._put_back(handle)

    def empty_cache(self) -> None:
        """Wait for the other streams and give everything back to the driver that no block in use lies in."""
        for block in list(self._waiting):
            self.finish(block)
        self._segments.release(self._large)
        self._segments.release(self._small)

    def cached_blocks(self) -> list[Block]:
        """Return the free blocks that are held of the device."""
        return [*self._small.free_blocks(), *self._large.free_blocks()]

    def has_cached(self, size: int, stream: int = 0) -> bool:
        """Say whether a request would be served without asking the driver for memory."""
        rounded = self.settings.round_size(size)
        pool = self._small if rounded <= SMALL_LIMIT else self._large
        free = pool.free[stream]
        return self._best_fit(free, rounded) < len(free) or self._segments.has_room(pool, stream, rounded)

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
        """Return the place of the smallest free block that is large enough, the lowest of equals (`get_free_block`).

        Where there is none, or it may not be taken, that is the end of the list.
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

    def _grow(self, pool: Pool, stream: int, size: int) -> Block | None:
        """Get memory from the driver; if it has none, release cached blocks in PyTorch's order and try again."""
        segments = self._segments
        if self.collects_garbage:
            segments.collect_garbage(self._large)
        block = segments.new(pool, stream, size)
        if block is None and segments.release_large_enough(pool, stream, size):
            block = segments.new(pool, stream, size)
        if block is None:
            self.empty_cache()
            block = segments.new(pool, stream, size)
        return block

    def _should_split(self, block: Block, size: int) -> bool:
        pool = block.pool
        splittable = pool.small or size < self.settings.max_split_bytes or self.settings.expandable_segments
        return splittable and block.size - size >= pool.least_rest

    def _put_back(self, block: Block) -> None:
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

    def _count_out(self, block: Block) -> None:
        if not block.allocated:
            raise ValueError(f"the block at {block.address:#x} was freed before")
        block.allocated = False
        self.allocated_bytes -= block.size


def _least_expandable(free: FreeList, index: int) -> int:
    """Step over blocks that could still grow while the next in size can grow less; PyTorch's best fit for them."""
    while index + 1 < len(free) and _expandable_size(free[index + 1][2]) < _expandable_size(free[index][2]):
        index += 1
    return index


def _expandable_size(block: Block) -> int:
    after = block.following
    return block.size + (after.size if after is not None and not after.mapped else 0)
