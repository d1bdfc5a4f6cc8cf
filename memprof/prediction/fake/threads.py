"""Threads that a program starts run under the same modes as the thread that starts them.

A mode is its thread's own, so a thread would make real tensors: `from_pretrained` of transformers reads and places
weights in a pool of them.

Private API: `threading.Thread.run`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch


@contextmanager
def threads_within(mode: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Run the threads that are started within the `with` block under a mode.

    Args:
        mode: returns what is entered around what a thread runs.
    """
    start = threading.Thread.start

    def start_within(thread: threading.Thread) -> None:
        run = thread.run

        def within() -> None:
            with mode():
                run()

        thread.run = within  # type: ignore[method-assign]
        start(thread)

    with patch.object(threading.Thread, "start", start_within):
        yield
