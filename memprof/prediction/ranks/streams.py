"""CUDA streams for FSDP, which runs here on tensors of a CPU, whose streams are one.

The caching allocator keeps the blocks of each stream apart, so that what FSDP gathers and reduces on streams of its own
does not come out of what forward and backward have given back. Waiting for a stream moves no memory.

`torch.cpu` has stand-ins of the same names for code that is written for any device; they are replaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from memprof.prediction.fake.event_log import EventLog


class _Stream:
    """A queue of work, known by its number; 0 is the default stream."""

    def __init__(self, number: int) -> None:
        self.number = number

    def wait_stream(self, stream: Any) -> None:
        """Move no memory."""

    def wait_event(self, event: Any) -> None:
        """Move no memory."""

    def record_event(self, event: Any = None) -> Any:
        """Return an event that is never waited for."""
        return torch.cpu.Event()


@contextmanager
def cuda_streams(log: EventLog) -> Iterator[None]:
    """Within the `with` block the log knows on which stream each block is taken."""
    streams = [_Stream(0)]

    def make(priority: int = 0) -> _Stream:
        streams.append(_Stream(len(streams)))
        return streams[-1]

    @contextmanager
    def entered(stream: _Stream | None) -> Iterator[None]:
        before = log.stream
        log.stream = before if stream is None else stream.number
        try:
            yield
        finally:
            log.stream = before

    def current_stream(device: Any = None) -> _Stream:
        return streams[log.stream]

    with patch.multiple(torch.cpu, Stream=make, stream=entered, current_stream=current_stream):
        yield
