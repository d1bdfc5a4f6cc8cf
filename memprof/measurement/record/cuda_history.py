"""The record that PyTorch's CUDA caching allocator keeps: every request and free, and what it takes from the driver.

The record is a list in the host's memory. It needs no memory on the device, and it has no stack traces.

Private API (see `memprof.torch_private`): `torch.cuda.memory._record_memory_history` and `_snapshot`
(torch/cuda/memory.py, torch/csrc/cuda/memory_snapshot.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

HistoryEvent = Mapping[str, Any]
_WANTED = ("action", "addr", "size", "stream", "pool_id")


def start_history() -> None:
    """Begin an empty record on every device. CUDA must be initialised."""
    torch.cuda.memory._record_memory_history("all", context=None, stacks="python", clear_history=True)


def read_history(device_index: int) -> list[HistoryEvent]:
    """Return the events of a device since recording began, oldest first.

    Each event has `action`, `addr`, `size` (in bytes as requested, before rounding) and `stream`, and from PyTorch 2.13
    on also `pool_id`. The actions are those of `torch.cuda.memory._snapshot`.

    Args:
        device_index: The index of the device.
    """
    traces: Sequence[Sequence[HistoryEvent]] = torch.cuda.memory._snapshot()["device_traces"]
    recorded = traces[device_index] if device_index < len(traces) else ()
    return [{name: event[name] for name in _WANTED if name in event} for event in recorded]


def stop_history() -> None:
    """End recording."""
    torch.cuda.memory._record_memory_history(None, context=None, stacks="python")
