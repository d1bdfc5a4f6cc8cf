"""When Python's garbage collector may look at a prediction: never while it runs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_entered: ContextVar[bool] = ContextVar("_entered", default=False)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep the collector from ending storages at odd moments, and from walking libraries and traces over and over.

    What was there before is left out of a collection that is asked for meanwhile: libraries bring a million objects,
    a training few.
    """
    if _entered.get():  # counting what is frozen walks it all
        yield
        return
    enabled, frozen, token = gc.isenabled(), gc.get_freeze_count(), _entered.set(True)
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        _entered.reset(token)
        if not frozen:  # else somebody else had a reason to leave them out
            gc.unfreeze()
        if enabled:
            gc.enable()
