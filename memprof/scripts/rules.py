"""Decides how many training steps of a script are run."""

from __future__ import annotations

LEAST, MOST = 3, 8


def is_last(number: int, wanted: int | None, alike: bool, waiting: bool) -> bool:
    """Return whether a training step that has ended is the last one.

    Args:
        number: The number of the step, counted from 1.
        wanted: The number of steps to run, if the user gave one.
        alike: Whether the step allocated the same sizes as the one before it.
        waiting: Whether an optimizer that the script constructed has not stepped yet.
    """
    if wanted is not None:
        return number >= wanted
    return number >= MOST or (number >= LEAST and alike and not waiting)


def next_is_last(number: int, wanted: int | None, alike: bool, waiting: bool) -> bool:
    """Return whether the step after one that has ended is the last one, for callers that must know before it begins.

    Args:
        number: The number of the step that has ended, counted from 1.
        wanted: The number of steps to run, if the user gave one.
        alike: Whether the step allocated the same sizes as the one before it.
        waiting: Whether an optimizer that the script constructed has not stepped yet.
    """
    return is_last(number + 1, wanted, alike, waiting)
