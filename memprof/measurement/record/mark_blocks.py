"""How a mark keeps its place among allocator events: it is a block of its own, known again by its address."""

from __future__ import annotations

from collections.abc import Iterable

from memprof.trace.events import Allocation, Entry, Free, Mark, ProfiledOperator

# A mark is a block of this size that is allocated and freed at once; it is removed from the stream again. An odd
# size that no tensor of a usual dtype has.
MARK_BYTES = 61


def place_marks(
    entries: Iterable[Entry | ProfiledOperator], marks: Iterable[tuple[int, Mark]]
) -> list[Entry | ProfiledOperator]:
    """Return the stream with each mark in place of its block.

    Args:
        entries: what an allocator did, in order.
        marks: (address of the mark's block, mark), in the order they were made.

    Raises:
        RuntimeError: the stream does not contain every mark, so the source has lost some.
    """
    placed: list[Entry | ProfiledOperator] = []
    waiting = iter(marks)
    address, mark = next(waiting, (0, None))
    open_mark = 0  # address of the mark whose block is not yet freed
    for entry in entries:
        if mark is not None and isinstance(entry, Allocation) and entry[:2] == (address, MARK_BYTES):
            placed.append(mark)
            open_mark = address
            address, mark = next(waiting, (0, None))
        elif open_mark and isinstance(entry, Free) and entry.address == open_mark:
            open_mark = 0
        else:
            placed.append(entry)
    if mark is not None:
        raise RuntimeError("the allocator's event history is incomplete: marks are missing from it")
    return placed
