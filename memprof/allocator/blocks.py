"""Blocks of device memory and the pools that hold the free ones.

Source: `struct Block`, `struct BlockPool`, `BlockComparatorSize` and `DeviceCachingAllocator::try_merge_blocks` in
`c10/cuda/CUDACachingAllocator.cpp`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from typing import TypeAlias


class Block:
    """A stretch of one segment, in use or free; also the handle of an allocation.

    Attributes:
        address: of its first byte.
        size: bytes of the stretch.
        requested: bytes its user asked for; 0 while it is free.
        stream: the CUDA stream whose work may use it.
        pool: where it lies when it is free.
        allocated: its user has it.
        waiting: its user gave it back, but work on another stream may still touch it.
        mapped: physical memory stands behind it; False only in expandable segments.
        segment_end: end of the virtual range it lies in, for an expandable segment; 0 otherwise.
        previous: the block before it in the segment, None at the start.
        following: the block after it, None at the end.
        born: the pool's count of searches when it became free; its age in garbage collection counts from there.
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
        previous: Block | None = None,
        following: Block | None = None,
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
        """It shares its segment with other blocks."""
        return self.previous is not None or self.following is not None

    @property
    def in_use(self) -> bool:
        """It is allocated, or waits for another stream."""
        return self.allocated or self.waiting

    def cut(self, size: int) -> Block:
        """Shrink to the first `size` bytes and return the rest as a free block behind this one."""
        after = self.following
        rest = Block(
            self.pool, self.stream, self.address + size, self.size - size, self.segment_end, self.mapped, self, after
        )
        if after is not None:
            after.previous = rest
        self.size, self.following = size, rest
        return rest

    def absorb_neighbours(self) -> None:
        """Take in the free neighbours that are mapped as this one is; they leave their pool."""
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
        """Lie down among the free blocks (mapped) or the holes (unmapped) of its pool."""
        pool = self.pool
        if self.mapped:
            self.born = pool.searches
            insort(pool.free[self.stream], (self.size, self.address, self))
        else:
            insort(pool.holes[self.stream], (self.address, self))

    def leave_pool(self) -> None:
        """Undo `enter_pool`."""
        if self.mapped:
            free = self.pool.free[self.stream]
            del free[bisect_left(free, (self.size, self.address))]  # a prefix sorts just before
        else:
            holes = self.pool.holes[self.stream]
            del holes[bisect_left(holes, (self.address,))]  # likewise


FreeList: TypeAlias = "list[tuple[int, int, Block]]"  # size, address and block, in this order


class Pool:
    """The free blocks of 1 MiB and less, or the larger ones.

    Attributes:
        small: which of the two it is.
        least_rest: what must be left over of a block for it to be split.
        free: by stream, the free blocks ordered by size, then address.
        holes: by stream, the unmapped stretches of expandable segments, ordered by address.
        searches: how often a free block was looked for; counted only when garbage collection is on.
    """

    __slots__ = ("free", "holes", "least_rest", "searches", "small")

    def __init__(self, small: bool, least_rest: int) -> None:
        self.small = small
        self.least_rest = least_rest
        self.free: defaultdict[int, FreeList] = defaultdict(list)
        self.holes: defaultdict[int, list[tuple[int, Block]]] = defaultdict(list)
        self.searches = 0

    def free_blocks(self) -> list[Block]:
        """Return the free blocks of all streams, by stream, size and address."""
        return [entry[2] for stream in sorted(self.free) for entry in self.free[stream]]
