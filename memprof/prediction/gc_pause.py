"""Keeps Python's garbage collector off while a prediction runs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_entered: ContextVar[bool] = ContextVar("_entered", default=False)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Turn the garbage collector off within the `with` block.

    Otherwise it would free storages at arbitrary moments, and visit the objects of libraries and traces again and
    again. If the program itself asks for a collection, objects from before the block are left out of it, because
    libraries have a million objects and a training has few.
    """
    if _entered.get():  # counting the frozen objects would visit all of them
        yield
        return
    enabled, frozen, token = gc.isenabled(), gc.get_freeze_count(), _entered.set(True)
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        _entered.reset(token)
        if not frozen:  # otherwise somebody else had frozen objects for a reason
            gc.unfreeze()
        if enabled:
            gc.enable()
