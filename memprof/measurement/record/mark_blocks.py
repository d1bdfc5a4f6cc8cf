"""Keeps marks in their place among allocator events: each mark is a small block, which its address identifies."""

from __future__ import annotations

from collections.abc import Iterable

from memprof.trace.events import Allocation, Entry, Free, Mark, ProfiledOperator

# A mark is a block of this size, which is allocated and freed at once and later removed from the stream. The size is
# odd, so that no tensor of a usual dtype has it.
MARK_BYTES = 61


def place_marks(
    entries: Iterable[Entry | ProfiledOperator], marks: Iterable[tuple[int, Mark]]
) -> list[Entry | ProfiledOperator]:
    """Return the stream with each mark in place of its block.

    Args:
        entries: The events of an allocator in order.
        marks: The address of each mark's block and the mark, in the order in which they were made.

    Raises:
        RuntimeError: The block of a mark is missing, so the source has lost events.
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
