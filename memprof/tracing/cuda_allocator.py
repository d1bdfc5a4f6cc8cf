"""Every allocation and free of PyTorch's CUDA caching allocator, from its own event history.

Recording starts in the middle of training, so the blocks that live by then are read from a snapshot first. Sizes are
what was requested; the allocator rounds them up to 512 bytes, which its own statistics include.

Private API of PyTorch: `torch.cuda.memory._record_memory_history` and `_snapshot` (torch/cuda/memory.py, read in
2.11.0, 2.13.0 and 2.15.0). `memprof doctor` says whether this machine has a CUDA device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from memprof.tracing.events import Allocation, Entry, Mark
from memprof.tracing.marks import MARK_BYTES, place_marks

_MAX_ENTRIES = 10_000_000


class CudaRecorder:
    """Records the caching allocator of one device.

    Args:
        device: a CUDA device with an index.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[int, Mark]] = []
        self._living: list[Entry] = []

    def start(self) -> None:
        """Note the live blocks and begin to record."""
        segments = torch.cuda.memory._snapshot(self._device)["segments"]
        index = self._device.index or 0
        self._living = living_blocks(segment for segment in segments if segment["device"] == index)
        torch.cuda.memory._record_memory_history(context=None, stacks="python", max_entries=_MAX_ENTRIES)

    def mark(self, mark: Mark) -> None:
        """Put a mark between the last event and the next."""
        self._marks.append((torch.UntypedStorage(MARK_BYTES, device=self._device).data_ptr(), mark))

    def stop(self) -> list[Entry]:
        """End recording and return the live blocks, then the events with the marks in their places."""
        history = torch.cuda.memory._snapshot(self._device)["device_traces"][self._device.index or 0]
        torch.cuda.memory._record_memory_history(enabled=None)
        return self._living + place_marks(signed_sizes(history), self._marks)


def living_blocks(segments: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """Return an allocation for each block of a snapshot's segments that is in use."""
    return [
        Allocation(block["address"], block.get("requested_size", block["size"]), segment.get("stream", 0))
        for segment in segments
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    ]


def signed_sizes(history: Iterable[Mapping[str, Any]]) -> list[tuple[int, int, int]]:
    """Return (address, size, stream) of each allocation, and with the size negative of each free.

    A block counts as free once its free is requested, as in the allocator's `allocated_bytes`; with more than one
    stream the memory itself may be in use (`active_bytes`) a little longer.
    """
    signs = {"alloc": 1, "free_requested": -1}
    return [
        (entry["addr"], signs[entry["action"]] * entry["size"], entry.get("stream", 0))
        for entry in history
        if entry["action"] in signs
    ]
