"""Blocks of device memory and the pools that hold the free ones.

Source: `struct Block`, `struct BlockPool`, `BlockComparatorSize` and `DeviceCachingAllocator::try_merge_blocks` in
`c10/cuda/CUDACachingAllocator.cpp`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict


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

    def __init__(self, pool: Pool, stream: int, address: int, size: int, segment_end: int = 0) -> None:
        self.pool = pool
        self.stream = stream
        self.address = address
        self.size = size
        self.segment_end = segment_end
        self.requested = self.born = 0
        self.allocated = self.waiting = False
        self.mapped = True
        self.previous: Block | None = None
        self.following: Block | None = None

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
        rest = Block(self.pool, self.stream, self.address + size, self.size - size, self.segment_end)
        rest.mapped = self.mapped
        rest.previous, rest.following = self, self.following
        if self.following is not None:
            self.following.previous = rest
        self.size, self.following = size, rest
        return rest

    def absorb_neighbours(self) -> None:
        """Take in the free neighbours that are mapped as this one is; they leave their pool."""
        before = self.previous
        if before is not None and self._may_absorb(before):
            before.leave_pool()
            self.address = before.address
            self.size += before.size
            self.previous = before.previous
            if self.previous is not None:
                self.previous.following = self
        after = self.following
        if after is not None and self._may_absorb(after):
            after.leave_pool()
            self.size += after.size
            self.following = after.following
            if self.following is not None:
                self.following.previous = self

    def _may_absorb(self, other: Block) -> bool:
        return not other.allocated and not other.waiting and other.mapped == self.mapped

    def enter_pool(self) -> None:
        """Lie down among the free blocks (mapped) or the holes (unmapped) of its pool."""
        if self.mapped:
            self.born = self.pool.searches
            insort(self.pool.free[self.stream], (self.size, self.address, self))
        else:
            insort(self.pool.holes[self.stream], (self.address, self))

    def leave_pool(self) -> None:
        """Undo `enter_pool`."""
        if self.mapped:
            free = self.pool.free[self.stream]
            del free[bisect_left(free, (self.size, self.address))]  # a prefix sorts just before
        else:
            holes = self.pool.holes[self.stream]
            del holes[bisect_left(holes, (self.address,))]  # likewise


class Pool:
    """The free blocks of 1 MiB and less, or the larger ones.

    Attributes:
        small: which of the two it is.
        free: by stream, the free blocks ordered by size, then address.
        holes: by stream, the unmapped stretches of expandable segments, ordered by address.
        searches: how often a free block was looked for; counted only when garbage collection is on.
    """

    __slots__ = ("free", "holes", "searches", "small")

    def __init__(self, small: bool) -> None:
        self.small = small
        self.free: defaultdict[int, list[tuple[int, int, Block]]] = defaultdict(list)
        self.holes: defaultdict[int, list[tuple[int, Block]]] = defaultdict(list)
        self.searches = 0

    def free_blocks(self) -> list[Block]:
        """Return the free blocks of all streams, by stream, size and address."""
        return [entry[2] for stream in sorted(self.free) for entry in self.free[stream]]
