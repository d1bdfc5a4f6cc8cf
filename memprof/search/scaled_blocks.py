"""The memory blocks of a traced training as arrays, and their sizes at values of the knob that were not traced.

At another batch size or width, a training makes the same allocations and frees in the same order. The size of a block
is a polynomial in the value: of degree one in the batch size, and of degree two in a width or a length. Mostly it is a
single power of the value, which two traces are enough to find. The blocks at any value therefore follow from two or
three traces with the same order of events, and they are replayed in the same way as a real trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from memprof.allocator.caching import CachingAllocator, Handle, OutOfMemory
from memprof.allocator.settings import SMALLEST_BLOCK
from memprof.devices.target import Target
from memprof.trace.events import CACHE_EMPTIED, PhaseSpan, Trace

_MOST_POINTS = 3
# The powers of the value that a block's size may be proportional to: the first for batches and widths, the second for
# products of two widths and for the pixels of images.
_POWERS = (1, 2, 3, 4)


@dataclass(frozen=True)
class DevicePeak:
    """The peak memory of a training on one device.

    Attributes:
        bytes: The peak in bytes: on a GPU the memory that the allocator reserves from the driver, on the CPU the
            allocated memory.
        phase: The phase in which the peak is reached, or in which the memory ran out.
        fits: Whether the training stayed within the capacity.
    """

    bytes: int
    phase: str
    fits: bool


@dataclass(frozen=True, eq=False)
class TracedBlocks:
    """The allocations and frees of one traced training, as arrays.

    Attributes:
        value: The value of the knob that was traced.
        sizes: For each block, its size in bytes.
        order: For each event, the index of the block that is allocated or freed.
        allocates: For each event, whether it allocates the block.
        returned: For each block, whether an operator returned it. The other blocks are workspace of kernels.
        streams: For each block, its CUDA stream.
        spans: The spans of the phases, in order.
        batches: For each batch, the bytes of the blocks that were allocated to make it.
    """

    value: int
    sizes: NDArray[np.int64]
    order: NDArray[np.int64]
    allocates: NDArray[np.bool_]
    returned: NDArray[np.bool_]
    streams: list[int]
    spans: list[PhaseSpan]
    batches: tuple[int, ...] = ()

    @classmethod
    def of(cls, value: int, trace: Trace) -> TracedBlocks:
        """Return the blocks of a trace.

        Args:
            value: The value of the knob at which the trace was made.
            trace: The trace.
        """
        order = np.array([event.block for event in trace.events], dtype=np.int64)
        first = np.zeros(len(order), dtype=np.bool_)
        first[np.unique(order, return_index=True)[1]] = True
        sizes = np.array([block.size for block in trace.blocks], dtype=np.int64)
        returned = np.array([block.tensor for block in trace.blocks], dtype=np.bool_)
        streams = [block.stream for block in trace.blocks]
        batches = tuple(
            _allocated_in(trace, number) for number, span in enumerate(trace.spans) if span.phase == "batch"
        )
        return cls(value, sizes, order, first, returned, streams, list(trace.spans), batches)

    @cached_property
    def tensors_only(self) -> TracedBlocks:
        """The same training without the workspace of kernels, which appears and disappears at thresholds of its own."""
        kept = self.returned[self.order] & (self.order != CACHE_EMPTIED)
        chosen, order = np.unique(self.order[kept], return_inverse=True)
        before = np.concatenate(([0], np.cumsum(kept)))
        return TracedBlocks(
            value=self.value,
            sizes=self.sizes[chosen],
            order=order,
            allocates=self.allocates[kept],
            returned=self.returned[chosen],
            streams=[self.streams[number] for number in chosen],
            spans=[replace(span, start=int(before[span.start])) for span in self.spans],
        )

    @cached_property
    def signature(self) -> int:
        """A hash that is equal for two trainings that allocate and free their blocks in the same order."""
        phases = tuple((span.start, span.phase) for span in self.spans)
        return hash((self.order.tobytes(), self.allocates.tobytes(), phases))

    def peak(self, target: Target) -> DevicePeak:
        """Return the peak on a device whose memory has no limit."""
        return self._allocated() if target.kind == "cpu" else self._replayed(target, None)

    def peak_within(self, target: Target, capacity_bytes: int, unlimited: DevicePeak) -> DevicePeak:
        """Return the peak on a device with a limited memory.

        Args:
            target: The device.
            capacity_bytes: The memory of the device, in bytes.
            unlimited: The peak without a limit, as `peak` returned it.
        """
        if unlimited.bytes <= capacity_bytes:
            return unlimited
        if target.kind == "cpu" or self.allocated_bytes(SMALLEST_BLOCK) > capacity_bytes:
            return replace(unlimited, phase=self._phase_over(capacity_bytes), fits=False)
        return self._replayed(target, capacity_bytes)  # near the limit, the allocator releases its unused segments

    def fits(self, target: Target, capacity_bytes: int) -> bool:
        """Return whether the training fits into a device.

        Args:
            target: The device.
            capacity_bytes: The memory of the device, in bytes.
        """
        if target.kind == "cpu":
            return self.allocated_bytes() <= capacity_bytes
        least = self.allocated_bytes(SMALLEST_BLOCK)
        return least <= capacity_bytes and self._replay(target, capacity_bytes)[2]

    def allocated_bytes(self, multiple: int = 1) -> int:
        """Return the largest number of bytes in use at once, with each block's size rounded up to a multiple."""
        return int(self._levels(multiple).max(initial=0))

    def _levels(self, multiple: int = 1) -> NDArray[np.int64]:
        rounded: NDArray[np.int64] = -(-self.sizes // multiple) * multiple
        changes = np.where(self.allocates, rounded[self.order], -rounded[self.order])
        return np.cumsum(np.where(self.order == CACHE_EMPTIED, 0, changes))

    def _allocated(self) -> DevicePeak:
        levels = self._levels()
        begin = next((span.start for span in self.spans if span.step > 0), 0)
        top = begin + int(levels[begin:].argmax())
        return DevicePeak(int(levels[top]), self._phase_at(top), True)

    def _phase_over(self, capacity_bytes: int) -> str:
        over = np.flatnonzero(self._levels() > capacity_bytes)
        return self._phase_at(int(over[0])) if len(over) else self._allocated().phase

    def _phase_at(self, event: int) -> str:
        return [span.phase for span in self.spans if span.start <= event][-1]

    def _replayed(self, target: Target, capacity_bytes: int | None) -> DevicePeak:
        most, top, finished = self._replay(target, capacity_bytes)
        if not finished:
            most = self._replay(target, None)[0]
        return DevicePeak(most, self._phase_at(top), finished)

    def _replay(self, target: Target, capacity_bytes: int | None) -> tuple[int, int, bool]:
        """Replay the blocks through a caching allocator.

        Returns:
            The most bytes that were reserved; the index of the event at which that was reached, or at which the
            memory ran out; and whether the replay came to its end.
        """
        allocator = CachingAllocator(capacity_bytes, target.allocator)
        sizes, handles = self.sizes.tolist(), dict[int, Handle]()
        top, most = 0, 0
        for index, (number, allocates) in enumerate(zip(self.order.tolist(), self.allocates.tolist(), strict=True)):
            if number == CACHE_EMPTIED:
                allocator.empty_cache()
                continue
            if not sizes[number]:
                continue
            if not allocates:
                allocator.free(handles.pop(number))
                continue
            try:
                handles[number] = allocator.allocate(sizes[number], self.streams[number])
            except OutOfMemory:
                return most, index, False
            if allocator.reserved_bytes > most:
                top, most = index, allocator.reserved_bytes
        return most, top, True


def _allocated_in(trace: Trace, number: int) -> int:
    """Return how many bytes are allocated within a span."""
    ends = [*(span.start for span in trace.spans[1:]), len(trace.events)]
    return sum(event.size for event in trace.events[trace.spans[number].start : ends[number]] if event.size > 0)


def blocks_at(value: int, traced: Sequence[TracedBlocks]) -> TracedBlocks | None:
    """Return the blocks at a value that was not traced, computed from the nearest traces with the same order of events.

    A block whose size is proportional to a power of the value in all of these traces stays proportional to it. The size
    of any other block is interpolated by a polynomial in the lowest power that any block is proportional to: the pixels
    of an image, and all the sizes that depend on them, grow with the square of its width.

    Args:
        value: The value of the knob.
        traced: The blocks of all traces, in any order.

    Returns:
        The blocks; None if no two traces have the same order of events.
    """
    by_order: dict[int, list[TracedBlocks]] = {}
    for blocks in sorted(traced, key=lambda blocks: abs(blocks.value - value)):
        by_order.setdefault(blocks.signature, []).append(blocks)
    alike = next((found for found in by_order.values() if len(found) > 1), None)
    if alike is None:
        return None
    nearest = alike[:_MOST_POINTS]
    known = {power: _of_power(power, nearest) for power in _POWERS}
    base = next((power for power, found in known.items() if found.any()), 1)
    weights = _weights(value**base, [one.value**base for one in nearest])
    sizes = sum(weight * one.sizes for weight, one in zip(weights, nearest, strict=True))
    for power, found in known.items():
        sizes = np.where(found, nearest[0].sizes * (value / nearest[0].value) ** power, sizes)
    return replace(nearest[0], value=value, sizes=np.maximum(np.rint(sizes), 0).astype(np.int64))


def _of_power(power: int, points: Sequence[TracedBlocks]) -> NDArray[np.bool_]:
    """Return, for each block, whether its sizes in all traces are proportional to that power of the value."""
    first, *others = points
    alike = [np.isclose(first.sizes * (one.value / first.value) ** power, one.sizes, rtol=1e-9) for one in others]
    found: NDArray[np.bool_] = np.logical_and.reduce([first.sizes > 0, *alike])
    return found


def _weights(value: int, points: Sequence[int]) -> list[float]:
    """Return the weight of each point in Lagrange's interpolation polynomial at a value."""
    weights = []
    for one in points:
        others = [other for other in points if other != one]
        weights.append(float(np.prod([(value - other) / (one - other) for other in others])))
    return weights
