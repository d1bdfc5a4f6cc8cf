"""The blocks of a traced training in arrays: their peak at once, and their sizes at a value that was not traced.

From one batch size or width to another a training makes the same allocations and frees in the same order; what a block
takes is a polynomial of the value, of degree one in the batch size and two in a width or a length. So the blocks at any
value follow from two or three traces of the same order, and are replayed as a trace of its own would be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from memprof.simulation.allocator import CachingAllocator, Handle, OutOfMemory
from memprof.simulation.settings import SMALLEST_BLOCK
from memprof.simulation.target import Target
from memprof.tracing.events import PhaseSpan, Trace

_MOST_POINTS = 3


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
    """

    value: int
    sizes: NDArray[np.int64]
    order: NDArray[np.int64]
    allocates: NDArray[np.bool_]
    returned: NDArray[np.bool_]
    streams: list[int]
    spans: list[PhaseSpan]

    @classmethod
    def of(cls, value: int, trace: Trace) -> Blocks:
        """Return the blocks of a trace."""
        order = np.array([event.block for event in trace.events], dtype=np.int64)
        first = np.zeros(len(order), dtype=np.bool_)
        first[np.unique(order, return_index=True)[1]] = True
        sizes = np.array([block.size for block in trace.blocks], dtype=np.int64)
        returned = np.array([block.tensor for block in trace.blocks], dtype=np.bool_)
        streams = [block.stream for block in trace.blocks]
        return cls(value, sizes, order, first, returned, streams, list(trace.spans))

    @cached_property
    def bare(self) -> Blocks:
        """The same without the scratch of kernels, which comes and goes with thresholds of their own."""
        kept = self.returned[self.order]
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

    def allocated_bytes(self, multiple: int = 1) -> int:
        """Return the most bytes in use at once, each block rounded up to a multiple."""
        return int(self._levels(multiple).max(initial=0))

    def _levels(self, multiple: int = 1) -> NDArray[np.int64]:
        rounded: NDArray[np.int64] = -(-self.sizes // multiple) * multiple
        changes = np.where(self.allocates, rounded[self.order], -rounded[self.order])
        return np.cumsum(changes)

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
        allocator = CachingAllocator(capacity_bytes, target.allocator)
        sizes, handles = self.sizes.tolist(), dict[int, Handle]()
        top, most = 0, 0
        for index, (number, allocates) in enumerate(zip(self.order.tolist(), self.allocates.tolist(), strict=True)):
            if not sizes[number]:
                continue
            if not allocates:
                allocator.free(handles.pop(number))
                continue
            try:
                handles[number] = allocator.allocate(sizes[number], self.streams[number])
            except OutOfMemory:
                return Need(self._replayed(target, None).bytes, self._phase_at(index), False)
            if allocator.reserved_bytes > most:
                top, most = index, allocator.reserved_bytes
        return Need(most, self._phase_at(top), True)


def blocks_at(value: int, traced: Sequence[Blocks]) -> Blocks | None:
    """Return the blocks at a value, by the polynomial through the nearest traces that have one order.

    None where no two of the traces have the same order.
    """
    by_order: dict[int, list[Blocks]] = {}
    for blocks in sorted(traced, key=lambda blocks: abs(blocks.value - value)):
        by_order.setdefault(blocks.signature, []).append(blocks)
    alike = next((found for found in by_order.values() if len(found) > 1), None)
    if alike is None:
        return None
    nearest = alike[:_MOST_POINTS]
    sizes = np.rint(sum(w * blocks.sizes for w, blocks in zip(_weights(value, nearest), nearest, strict=True)))
    return replace(nearest[0], value=value, sizes=np.maximum(sizes, 0).astype(np.int64))


def _weights(value: int, points: Sequence[Blocks]) -> list[float]:
    """Return Lagrange's weights."""
    weights = []
    for one in points:
        others = [other.value for other in points if other is not one]
        weights.append(float(np.prod([(value - other) / (one.value - other) for other in others])))
    return weights
