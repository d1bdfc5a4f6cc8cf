"""A model of the CUDA driver as the caching allocator uses it: it hands out device memory until none is left."""

from __future__ import annotations

from typing import Protocol

SEGMENTS_FROM = 0x1000_0000_0000
_SEGMENTS_BELOW = 0x3000_0000_0000
RANGES_FROM = 0x4000_0000_0000
_PAGE = 2 * 2**20
_GAP = 2**30  # between two virtual ranges


class Driver(Protocol):
    """The driver calls that `DeviceCachingAllocator` makes. Sizes are in bytes."""

    def allocate(self, size: int, stream: int) -> int | None:
        """Return the address of a new segment, or None if there is not enough memory (`cudaMalloc`).

        Args:
            size: the bytes of the segment.
            stream: the CUDA stream of the request.
        """

    def free(self, address: int, size: int) -> None:
        """Take a segment back (`cudaFree`).

        Args:
            address: the address of the segment.
            size: the bytes of the segment.
        """

    def reserve(self, size: int, stream: int) -> int:
        """Return the address of a virtual range without memory behind it (`cuMemAddressReserve`).

        Args:
            size: the bytes of the range.
            stream: the CUDA stream of the request.
        """

    def map(self, address: int, size: int) -> bool:
        """Put memory behind part of a range (`cuMemCreate`, `cuMemMap`).

        Args:
            address: the address of the part.
            size: the bytes of the part.

        Returns:
            False if there is not enough memory.
        """

    def unmap(self, address: int, size: int) -> None:
        """Take the memory behind part of a range back (`cuMemUnmap`, `cuMemRelease`).

        Args:
            address: the address of the part.
            size: the bytes of the part.
        """


class SimulatedDriver:
    """A driver with a given amount of memory, which never hands out an address twice.

    If two free blocks are equally large, the caching allocator takes the one at the lower address. So the order of
    addresses decides which blocks share a segment. Under Linux the CUDA driver takes its address ranges from the
    kernel, which hands them out from the top down, so newer segments lie below older ones. Measured runs agree: with
    falling addresses the remaining errors on GPT-Neo and T5 are the same for all of them, and with rising addresses
    some runs are off by up to 460 MiB (reports/accuracy.md).

    Args:
        capacity_bytes: the memory available for segments; None means that it is unlimited.
        falling: whether newer segments lie below older ones; otherwise they lie above.
    """

    def __init__(self, capacity_bytes: int | None, falling: bool = True) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._falling = falling
        self._next_segment = _SEGMENTS_BELOW if falling else SEGMENTS_FROM
        self._next_range = RANGES_FROM

    def allocate(self, size: int, stream: int) -> int | None:
        """See `Driver`."""
        if not self._take(size):
            return None
        extent = -(-size // _PAGE) * _PAGE
        if self._falling:
            self._next_segment -= extent
            return self._next_segment
        self._next_segment += extent
        return self._next_segment - extent

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
