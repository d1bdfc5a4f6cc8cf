"""How a mark keeps its place among allocator events: it is a block of its own, known again by its address."""

from __future__ import annotations

from collections.abc import Iterable

from memprof.tracing.events import Allocation, Entry, Free, Mark

# A mark is a block of this size that is allocated and freed at once; it is removed from the stream again. An odd
# size that no tensor of a usual dtype has.
MARK_BYTES = 61


def place_marks(events: Iterable[tuple[int, int, int]], marks: Iterable[tuple[int, Mark]]) -> list[Entry]:
    """Return the stream of an allocator's events with each mark in place of its block.

    Args:
        events: (address, size, stream), the size negative for a free.
        marks: (address of the mark's block, mark), in the order they were made.

    Raises:
        RuntimeError: the events do not contain every mark, so the source has lost some.
    """
    entries: list[Entry] = []
    waiting = iter(marks)
    address, mark = next(waiting, (0, None))
    open_mark = 0  # address of the mark whose block is not yet freed
    for pointer, size, stream in events:
        if mark is not None and pointer == address and size == MARK_BYTES:
            entries.append(mark)
            open_mark = pointer
            address, mark = next(waiting, (0, None))
        elif size < 0 and pointer == open_mark:
            open_mark = 0
        else:
            entries.append(Allocation(pointer, size, stream) if size > 0 else Free(pointer))
    if mark is not None:
        raise RuntimeError("the allocator's event history is incomplete: marks are missing from it")
    return entries
