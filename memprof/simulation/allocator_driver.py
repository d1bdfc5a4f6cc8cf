"""What the CUDA driver does for the caching allocator: it hands out device memory until there is none left."""

from __future__ import annotations

from typing import Protocol

SEGMENTS_FROM = 0x1000_0000_0000
RANGES_FROM = 0x4000_0000_0000
_PAGE = 2 * 2**20
_GAP = 2**30  # between two virtual ranges


class Driver(Protocol):
    """The calls that `DeviceCachingAllocator` makes."""

    def allocate(self, size: int, stream: int) -> int | None:
        """Return the address of a new segment, None when memory is short (`cudaMalloc`)."""

    def free(self, address: int, size: int) -> None:
        """Take a segment back (`cudaFree`)."""

    def reserve(self, size: int, stream: int) -> int:
        """Return the address of a virtual range without memory behind it (`cuMemAddressReserve`)."""

    def map(self, address: int, size: int) -> bool:
        """Put memory behind part of a range; False when memory is short (`cuMemCreate`, `cuMemMap`)."""

    def unmap(self, address: int, size: int) -> None:
        """Take that memory back (`cuMemUnmap`, `cuMemRelease`)."""


class Memory:
    """A driver with a given amount of memory, whose addresses only rise.

    Args:
        capacity_bytes: what there is for segments; None for without end.
    """

    def __init__(self, capacity_bytes: int | None) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._next_segment = SEGMENTS_FROM
        self._next_range = RANGES_FROM

    def allocate(self, size: int, stream: int) -> int | None:
        """See `Driver`."""
        if not self._take(size):
            return None
        address = self._next_segment
        self._next_segment += -(-size // _PAGE) * _PAGE
        return address

    def free(self, address: int, size: int) -> None:
        """See `Driver`."""
        self.used_bytes -= size

    def reserve(self, size: int, stream: int) -> int:
        """See `Driver`."""
        address = self._next_range
        self._next_range += size + _GAP
        return address

    def map(self, address: int, size: int) -> bool:
        """See `Driver`."""
        return self._take(size)

    def unmap(self, address: int, size: int) -> None:
        """See `Driver`."""
        self.used_bytes -= size

    def _take(self, size: int) -> bool:
        if self.capacity_bytes is not None and self.used_bytes + size > self.capacity_bytes:
            return False
        self.used_bytes += size
        return True
