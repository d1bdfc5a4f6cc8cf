"""The blocks of a traced training in arrays: their peak at once, and their sizes at a value that was not traced.

From one batch size or width to another a training makes the same allocations and frees in the same order; what a block
takes is a polynomial of the value, of degree one in the batch size and two in a width or a length; mostly a single
power of it, which two traces tell. So the blocks at any value follow from two or three traces of the same order, and
are replayed as a trace of its own would be.
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
# What sizes may go by: batches and widths by the first, products of two widths and the pixels of images by the second.
_POWERS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Need:
    """What a training takes of a device.

    Attributes:
        bytes: the most at once; for a GPU what its allocator takes from the driver.
        phase: in which it is reached, or in which the memory ran out.
        fits: it stayed within the capacity.
    """

    bytes: int
    phase: str
    fits: bool


@dataclass(frozen=True, eq=False)
class Blocks:
    """The allocations and frees of one training.

    Attributes:
        value: of the knob.
        sizes: bytes of each block.
        order: by event, the number of the block that is allocated or freed.
        allocates: by event, whether it is allocated.
        returned: by block, whether an operator returned it; the others are scratch of kernels.
        streams: by block, the CUDA stream.
        spans: of the phases.
        batches: bytes of the blocks made for each batch.
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
    def of(cls, value: int, trace: Trace) -> Blocks:
        """Return the blocks of a trace."""
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
    def bare(self) -> Blocks:
        """The same without the scratch of kernels, which comes and goes with thresholds of their own."""
        kept = self.returned[self.order] & (self.order != CACHE_EMPTIED)
        chosen, order = np.unique(self.order[kept], return_inverse=True)
        before = np.concatenate(([0], np.cumsum(kept)))
        return Blocks(
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
        """The same for two trainings that allocate and free in the same order."""
        phases = tuple((span.start, span.phase) for span in self.spans)
        return hash((self.order.tobytes(), self.allocates.tobytes(), phases))

    def need(self, target: Target) -> Need:
        """Return what the training takes on a device without an end."""
        return self._allocated() if target.kind == "cpu" else self._replayed(target, None)

    def need_within(self, target: Target, capacity_bytes: int, at_will: Need) -> Need:
        """Return what it takes of a device of that capacity.

        Args:
            target: the device.
            capacity_bytes: what there is.
            at_will: what `need` returned.
        """
        if at_will.bytes <= capacity_bytes:
            return at_will
        if target.kind == "cpu" or self.allocated_bytes(SMALLEST_BLOCK) > capacity_bytes:
            return replace(at_will, phase=self._phase_over(capacity_bytes), fits=False)
        return self._replayed(target, capacity_bytes)  # the allocator gives back what it does not use

    def fits(self, target: Target, capacity_bytes: int) -> bool:
        """Say whether the training stays within a device of that capacity."""
        if target.kind == "cpu":
            return self.allocated_bytes() <= capacity_bytes
        least = self.allocated_bytes(SMALLEST_BLOCK)
        return least <= capacity_bytes and self._replay(target, capacity_bytes)[2]

    def allocated_bytes(self, multiple: int = 1) -> int:
        """Return the most bytes in use at once, each block rounded up to a multiple."""
        return int(self._levels(multiple).max(initial=0))

    def _levels(self, multiple: int = 1) -> NDArray[np.int64]:
        rounded: NDArray[np.int64] = -(-self.sizes // multiple) * multiple
        changes = np.where(self.allocates, rounded[self.order], -rounded[self.order])
        return np.cumsum(np.where(self.order == CACHE_EMPTIED, 0, changes))

    def _allocated(self) -> Need:
        levels = self._levels()
        begin = next((span.start for span in self.spans if span.step > 0), 0)
        top = begin + int(levels[begin:].argmax())
        return Need(int(levels[top]), self._phase_at(top), True)

    def _phase_over(self, capacity_bytes: int) -> str:
        over = np.flatnonzero(self._levels() > capacity_bytes)
        return self._phase_at(int(over[0])) if len(over) else self._allocated().phase

    def _phase_at(self, event: int) -> str:
        return [span.phase for span in self.spans if span.start <= event][-1]

    def _replayed(self, target: Target, capacity_bytes: int | None) -> Need:
        most, top, finished = self._replay(target, capacity_bytes)
        if not finished:
            most = self._replay(target, None)[0]
        return Need(most, self._phase_at(top), finished)

    def _replay(self, target: Target, capacity_bytes: int | None) -> tuple[int, int, bool]:
        """Return the most bytes reserved, the event of that or where the memory ran out, and whether it did not."""
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
    """Return the bytes of the blocks that are allocated in a span."""
    ends = [*(span.start for span in trace.spans[1:]), len(trace.events)]
    return sum(event.size for event in trace.events[trace.spans[number].start : ends[number]] if event.size > 0)


def blocks_at(value: int, traced: Sequence[Blocks]) -> Blocks | None:
    """Return the blocks at a value, from the nearest traces that have one order; None where no two have.

    A block whose size goes by a power of the value is taken to go on so. The others are polynomials through the traces,
    of the lowest power that any block goes by: an image's pixels, and so all that follows, go by its width's square.
    """
    by_order: dict[int, list[Blocks]] = {}
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


def _of_power(power: int, points: Sequence[Blocks]) -> NDArray[np.bool_]:
    """Say which blocks are as large at all points as that power of the value makes them."""
    first, *others = points
    alike = [np.isclose(first.sizes * (one.value / first.value) ** power, one.sizes, rtol=1e-9) for one in others]
    found: NDArray[np.bool_] = np.logical_and.reduce([first.sizes > 0, *alike])
    return found


def _weights(value: int, points: Sequence[int]) -> list[float]:
    """Return Lagrange's weights."""
    weights = []
    for one in points:
        others = [other for other in points if other != one]
        weights.append(float(np.prod([(value - other) / (one - other) for other in others])))
    return weights
