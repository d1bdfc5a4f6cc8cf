"""How many training steps of a script are run."""

from __future__ import annotations

LEAST, MOST = 3, 8


def is_last(number: int, wanted: int | None, alike: bool, waiting: bool) -> bool:
    """Whether a training step that has ended is the last.

    Args:
        number: of the step, from 1.
        wanted: steps to run, if somebody said so.
        alike: it allocated what the one before it did.
        waiting: an optimizer that the script constructed has not stepped yet.
    """
    if wanted is not None:
        return number >= wanted
    return number >= MOST or (number >= LEAST and alike and not waiting)


def next_is_last(number: int, wanted: int | None, alike: bool, waiting: bool) -> bool:
    """Whether the step after one that has ended is the last, where that must be known before it begins.

    Args:
        number: of the step that has ended, from 1.
        wanted: steps to run, if somebody said so.
        alike: it allocated what the one before it did.
        waiting: an optimizer that the script constructed has not stepped yet.
    """
    return is_last(number + 1, wanted, alike, waiting)
