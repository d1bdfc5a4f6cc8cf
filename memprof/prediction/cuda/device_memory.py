"""Simulates the memory of a GPU while a program runs on it, by replaying the caching allocator live.

Every allocation and free of the event log goes through the model of PyTorch's allocator at once. So functions such as
`torch.cuda.memory_allocated()` and `mem_get_info()` return the figures of that GPU, and a program that allocates more
than the GPU has gets PyTorch's `torch.OutOfMemoryError`.

Sources: `DeviceStats` in `c10/core/CachingDeviceAllocator.h`, `DeviceCachingAllocator::malloc` (the wording) and
`free_block`, `alloc_found_block` (the counters) in `c10/cuda/CUDACachingAllocator.cpp`, 2.10; the keys of
`torch.cuda.memory_stats` in 2.8 and 2.13.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from memprof.allocator.block_pools import AllocatorBlock
from memprof.allocator.caching import CachingAllocator, OutOfMemory
from memprof.allocator.driver import SimulatedDriver
from memprof.allocator.settings import SMALL_SEGMENT, UNLIMITED
from memprof.devices.target import Target
from memprof.prediction.cuda.kernels.convolution import SOURCE as CONVOLUTIONS
from memprof.trace.events import SizeLimits

_POOLS = ("all", "small_pool", "large_pool")
_COUNTED = ("allocation", "segment", "active", "inactive_split")
_SUMMED = ("allocated_bytes", "reserved_bytes", "active_bytes", "inactive_split_bytes", "requested_bytes")


class DeviceMemory:
    """The memory of one GPU.

    Args:
        target: The GPU, and the settings of its allocator.
        limited: Whether a request that does not fit raises `torch.OutOfMemoryError`. Otherwise the memory is
            unlimited, and requests are replayed only when the program asks for a figure. The free bytes are those of
            the real GPU in both cases.

    Attributes:
        allocator: The model that serves the requests.
        capacity_bytes: The bytes that the driver has for the allocator; None if the memory is unlimited.
        total_bytes: The bytes of the device, including those of the driver and the CUDA context; None if the memory is
            unlimited.
    """

    def __init__(self, target: Target, limited: bool = True) -> None:
        self.capacity_bytes = target.capacity_bytes
        self.total_bytes = target.total_bytes
        self._driver = _CountingDriver(target.capacity_bytes if limited else None, self)
        self.allocator = CachingAllocator(
            target.capacity_bytes if limited else None, target.allocator, driver=self._driver
        )
        self._limited = limited
        self._waiting: list[Callable[[], None]] = []  # the requests to replay when the program asks for a figure
        self._handles: dict[int, AllocatorBlock] = {}
        self._split: dict[int, tuple[int, int]] = {}  # the count and bytes of each split segment's free parts
        self._figures = {(name, pool): _Figure() for name in (*_COUNTED, *_SUMMED) for pool in _POOLS}
        self._oversize, self._oversize_segments = _Figure(), _Figure()
        self._out_of_memory = self._retries = self._emptied = 0

    def take(self, address: int, size: int, stream: int, limits: SizeLimits | None = None) -> None:
        """Serve a request. A convolution's workspace that does not fit is left out, as cuDNN then takes a smaller one.

        Args:
            address: The address by which the block is freed.
            size: The bytes of the block, at least one.
            stream: The stream of the work that uses the block.
            limits: The limits of the size if it is an estimate; otherwise None.

        Raises:
            torch.OutOfMemoryError: The block does not fit, even after the cache was emptied.
        """
        if not self._limited:
            self._waiting.append(partial(self._serve, address, size, stream, limits))
        else:
            self._serve(address, size, stream, limits)

    def give_back(self, address: int) -> None:
        """Free the block that was served at an address."""
        if not self._limited:
            self._waiting.append(partial(self._take_back, address))
        else:
            self._take_back(address)

    def empty_cache(self) -> None:
        """Return unused memory to the driver."""
        self._catch_up()
        self.allocator.empty_cache()
        self._emptied += 1

    def free_bytes(self) -> int:
        """Return the bytes that the driver has left, at least 0."""
        self._catch_up()
        if self.capacity_bytes is None:
            return 1 << 60
        return max(0, self.capacity_bytes - self.allocator.reserved_bytes)

    def reset_peaks(self) -> None:
        """Set every peak to the current value (`reset_peak_memory_stats`)."""
        self._catch_up()
        for figure in self._all_figures():
            figure.peak = figure.current

    def reset_accumulated(self) -> None:
        """Set the accumulated counters to 0 (`reset_accumulated_memory_stats`)."""
        self._catch_up()
        for figure in self._all_figures():
            figure.allocated = figure.freed = 0
        self._out_of_memory = self._retries = self._emptied = self._driver.allocations = self._driver.frees = 0

    def statistics(self) -> dict[str, Any]:
        """Return the statistics as `torch._C._cuda_memoryStats` does, nested by statistic, pool and kind."""
        self._catch_up()
        nested: dict[str, Any] = {
            name: {pool: self._figures[name, pool].as_dict() for pool in _POOLS} for name in (*_COUNTED, *_SUMMED)
        }
        limit = self.allocator.settings.max_split_bytes
        return {
            **nested,
            "num_alloc_retries": self._retries,
            "num_ooms": self._out_of_memory,
            "num_sync_all_streams": self._retries + self._emptied,
            "num_device_alloc": self._driver.allocations,
            "num_device_free": self._driver.frees,
            "max_split_size": -1 if limit == UNLIMITED else limit,
            "oversize_allocations": self._oversize.as_dict(),
            "oversize_segments": self._oversize_segments.as_dict(),
        }

    def segment_changed(self, small: bool, count: int, size: int) -> None:
        """Count a segment that the driver allocated or freed.

        Args:
            small: Whether the segment belongs to the small pool.
            count: 1 if the segment was allocated, -1 if it was freed.
            size: The bytes of the segment, negative if it was freed.
        """
        for pool in ("all", "small_pool" if small else "large_pool"):
            self._figures["segment", pool].add(count)
            self._figures["reserved_bytes", pool].add(size)
        if abs(size) >= self.allocator.settings.max_split_bytes:
            self._oversize_segments.add(count)

    def _catch_up(self) -> None:
        waiting, self._waiting = self._waiting, []
        for serve in waiting:
            serve()

    def _serve(self, address: int, size: int, stream: int, limits: SizeLimits | None) -> None:
        refused = self._driver.refused
        try:
            block = self.allocator.allocate(size, stream)
        except OutOfMemory:
            self._retries += 1
            if limits is not None and limits.source == CONVOLUTIONS:
                return
            self._out_of_memory += 1
            raise torch.OutOfMemoryError(self._sentence(size)) from None
        self._retries += self._driver.refused > refused
        self._handles[address] = block
        self._count_block(block.pool.small, 1, block.size, size)
        self._note_split(block)

    def _take_back(self, address: int) -> None:
        block = self._handles.pop(address, None)
        if block is None:
            return
        requested, size, small = block.requested, block.size, block.pool.small
        self.allocator.free(block)
        self._count_block(small, -1, -size, -requested)
        self._note_split(block)

    def _all_figures(self) -> list[_Figure]:
        return [*self._figures.values(), self._oversize, self._oversize_segments]

    def _count_block(self, small: bool, count: int, size: int, requested: int) -> None:
        figures = self._figures
        for pool in ("all", "small_pool" if small else "large_pool"):
            figures["allocation", pool].add(count)
            figures["active", pool].add(count)
            figures["allocated_bytes", pool].add(size)
            figures["active_bytes", pool].add(size)
            figures["requested_bytes", pool].add(requested)
        if abs(size) >= self.allocator.settings.max_split_bytes:
            self._oversize.add(count)

    def _note_split(self, block: AllocatorBlock) -> None:
        """Count the free parts of a block's segment. PyTorch does not count those of expandable segments."""
        if block.segment_end:
            return
        first = block
        while first.previous is not None:
            first = first.previous
        count = size = 0
        part: AllocatorBlock | None = first
        while part is not None:
            if not part.in_use and part.split:
                count, size = count + 1, size + part.size
            part = part.following
        before_count, before_size = self._split.get(first.address, (0, 0))
        self._split[first.address] = count, size
        for pool in ("all", "small_pool" if block.pool.small else "large_pool"):
            self._figures["inactive_split", pool].add(count - before_count)
            self._figures["inactive_split_bytes", pool].add(size - before_size)

    def _sentence(self, size: int) -> str:
        settings, allocator = self.allocator.settings, self.allocator
        wanted = settings.segment_size(settings.round_size(size))
        allocated, reserved = allocator.allocated_bytes, allocator.reserved_bytes
        total = self.total_bytes or 0
        return (
            f"CUDA out of memory. Tried to allocate {_size(wanted)}. GPU 0 has a total capacity of {_size(total)} of "
            f"which {_size(self.free_bytes())} is free. Including non-PyTorch memory, this process has "
            f"{_size(total - self.free_bytes())} memory in use. Of the allocated memory {_size(allocated)} is "
            f"allocated by PyTorch, and {_size(reserved - allocated)} is reserved by PyTorch but unallocated. If "
            "reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to "
            "avoid fragmentation.  See documentation for Memory Management  "
            "(https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-cuda-alloc-conf)"
        )


class _Figure:
    """One of PyTorch's statistics: its current value, its peak, and the sums of its increases and decreases."""

    __slots__ = ("allocated", "current", "freed", "peak")

    def __init__(self) -> None:
        self.current = self.peak = self.allocated = self.freed = 0

    def add(self, change: int) -> None:
        if change > 0:
            self.allocated += change
            self.current += change
            if self.current > self.peak:
                self.peak = self.current
        elif change:
            self.freed -= change
            self.current += change

    def as_dict(self) -> dict[str, int]:
        return {"current": self.current, "peak": self.peak, "allocated": self.allocated, "freed": self.freed}


class _CountingDriver(SimulatedDriver):
    """A driver that reports the segments it allocates and frees. A small one has 2 MiB, or whole pages of that size."""

    def __init__(self, capacity_bytes: int | None, memory: DeviceMemory) -> None:
        super().__init__(capacity_bytes)
        self._memory = memory
        self.allocations = self.frees = self.refused = 0

    def allocate(self, size: int, stream: int) -> int | None:
        address = super().allocate(size, stream)
        self._came(address is not None, size == SMALL_SEGMENT, size)
        return address

    def free(self, address: int, size: int) -> None:
        super().free(address, size)
        self._went(size == SMALL_SEGMENT, size)

    def map(self, address: int, size: int) -> bool:
        mapped = super().map(address, size)
        self._came(mapped, self._is_small(size), size)
        return mapped

    def unmap(self, address: int, size: int) -> None:
        super().unmap(address, size)
        self._went(self._is_small(size), size)

    def _is_small(self, size: int) -> bool:
        return size % self._memory.allocator.settings.large_segment_bytes != 0

    def _came(self, came: bool, small: bool, size: int) -> None:
        if came:
            self.allocations += 1
            self._memory.segment_changed(small, 1, size)
        else:
            self.refused += 1

    def _went(self, small: bool, size: int) -> None:
        self.frees += 1
        self._memory.segment_changed(small, -1, -size)


def _size(count: int) -> str:
    """Return a size as text, as `c10::CachingAllocator::format_size` does."""
    for limit, unit in ((1 << 20, "KiB"), (1 << 30, "MiB")):
        if count <= limit:
            return f"{count} bytes" if count <= 1024 else f"{count / (limit >> 10):.2f} {unit}"
    return f"{count / (1 << 30):.2f} GiB"
