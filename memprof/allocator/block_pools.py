"""Blocks of device memory, and the pools that hold the free ones.

Source: `struct Block`, `struct BlockPool`, `BlockComparatorSize` and `DeviceCachingAllocator::try_merge_blocks` in
`c10/cuda/CUDACachingAllocator.cpp`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from typing import TypeAlias


class AllocatorBlock:
    """A contiguous part of one segment, in use or free. It also serves as the handle of an allocation.

    Args:
        pool: the pool to which the block belongs.
        stream: the CUDA stream whose work may use it.
        address: the address of its first byte.
        size: its size in bytes.
        segment_end: the end of the virtual range of an expandable segment; 0 for a fixed segment.
        mapped: whether there is physical memory behind it.
        previous: the block before it in the segment, or None.
        following: the block after it in the segment, or None.

    Attributes:
        address: the address of its first byte.
        size: its size in bytes.
        requested: the bytes that its user asked for; 0 while it is free.
        stream: the CUDA stream whose work may use it.
        pool: the pool that holds it while it is free.
        allocated: whether its user holds it.
        waiting: whether its user has freed it while work on another stream may still access it.
        mapped: whether there is physical memory behind it. It is False only in expandable segments.
        segment_end: the end of the virtual range in which it lies, for an expandable segment; otherwise 0.
        previous: the block before it in the segment, or None at the start.
        following: the block after it in the segment, or None at the end.
        born: the pool's count of searches when the block became free. Garbage collection measures its age from there.
    """

    __slots__ = (
        "address",
        "allocated",
        "born",
        "following",
        "mapped",
        "pool",
        "previous",
        "requested",
        "segment_end",
        "size",
        "stream",
        "waiting",
    )

    def __init__(
        self,
        pool: Pool,
        stream: int,
        address: int,
        size: int,
        segment_end: int = 0,
        mapped: bool = True,
        previous: AllocatorBlock | None = None,
        following: AllocatorBlock | None = None,
    ) -> None:
        self.pool = pool
        self.stream = stream
        self.address = address
        self.size = size
        self.segment_end = segment_end
        self.requested = self.born = 0
        self.allocated = self.waiting = False
        self.mapped = mapped
        self.previous = previous
        self.following = following

    @property
    def split(self) -> bool:
        """Whether the block shares its segment with other blocks."""
        return self.previous is not None or self.following is not None

    @property
    def in_use(self) -> bool:
        """Whether the block is allocated or waits for another stream."""
        return self.allocated or self.waiting

    def cut(self, size: int) -> AllocatorBlock:
        """Shrink the block to its first bytes and return the rest as a free block behind it.

        Args:
            size: the bytes that the block keeps.
        """
        after = self.following
        rest = AllocatorBlock(
            self.pool, self.stream, self.address + size, self.size - size, self.segment_end, self.mapped, self, after
        )
        if after is not None:
            after.previous = rest
        self.size, self.following = size, rest
        return rest

    def absorb_neighbours(self) -> None:
        """Merge the free neighbours into this block if they are mapped (or unmapped) like it.

        The neighbours leave their pool.
        """
        before, after = self.previous, self.following
        if before is not None and not before.allocated and not before.waiting and before.mapped is self.mapped:
            before.leave_pool()
            self.address = before.address
            self.size += before.size
            self.previous = before = before.previous
            if before is not None:
                before.following = self
        if after is not None and not after.allocated and not after.waiting and after.mapped is self.mapped:
            after.leave_pool()
            self.size += after.size
            self.following = after = after.following
            if after is not None:
                after.previous = self

    def enter_pool(self) -> None:
        """Put the block into its pool, among the free blocks if it is mapped and among the holes if it is not."""
        pool = self.pool
        if self.mapped:
            self.born = pool.searches
            insort(pool.free[self.stream], (self.size, self.address, self))
        else:
            insort(pool.holes[self.stream], (self.address, self))

    def leave_pool(self) -> None:
        """Take the block out of its pool."""
        if self.mapped:
            free = self.pool.free[self.stream]
            del free[bisect_left(free, (self.size, self.address))]  # a prefix of the entry sorts just before it
        else:
            holes = self.pool.holes[self.stream]
            del holes[bisect_left(holes, (self.address,))]  # a prefix again


FreeList: TypeAlias = "list[tuple[int, int, AllocatorBlock]]"  # each entry is (size, address, block)


class Pool:
    """The free blocks of one of the allocator's two pools: blocks of at most 1 MiB, or larger ones.

    Args:
        small: whether this is the pool of the small blocks.
        least_rest: the bytes that must remain of a block for it to be split.

    Attributes:
        small: whether this is the pool of the small blocks.
        least_rest: the bytes that must remain of a block for it to be split.
        free: for each stream the free blocks, ordered by size and then by address.
        holes: for each stream the unmapped parts of expandable segments, ordered by address.
        searches: the number of searches for a free block. It is counted only if garbage collection is on.
    """

    __slots__ = ("free", "holes", "least_rest", "searches", "small")

    def __init__(self, small: bool, least_rest: int) -> None:
        self.small = small
        self.least_rest = least_rest
        self.free: defaultdict[int, FreeList] = defaultdict(list)
        self.holes: defaultdict[int, list[tuple[int, AllocatorBlock]]] = defaultdict(list)
        self.searches = 0

    def free_blocks(self) -> list[AllocatorBlock]:
        """Return the free blocks of all streams, ordered by stream, size and address."""
        return [entry[2] for stream in sorted(self.free) for entry in self.free[stream]]
