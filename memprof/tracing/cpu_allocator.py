"""Every allocation and free of PyTorch's CPU allocator, from the profiler's memory events.

The profiler is switched on for memory only: no operator callbacks, about 0.2 microseconds and 60 bytes per event.
It sees every block that passes through `c10::GetCPUAllocator` on this thread, scratch inside kernels included, and
not what libraries take from `malloc` themselves (oneDNN's and BLAS's own scratch): that shows in the process only.

Private API of PyTorch, checked on 2.13.0 and 2.15.0: `torch._C._autograd._enable_profiler`,
`_disable_profiler`, `torch._C._profiler.ProfilerConfig` and `experimental_event_tree` (torch/csrc/autograd/init.cpp).
"""

from __future__ import annotations

import torch
from torch._C._autograd import _disable_profiler, _enable_profiler, _prepare_profiler
from torch._C._profiler import (
    ProfilerActivity,
    ProfilerConfig,
    ProfilerState,
    _ExperimentalConfig,
    _ExtraFields_Allocation,
)

from memprof.tracing.events import Entry, Mark
from memprof.tracing.marks import MARK_BYTES, place_marks

# The profiler wants one activity. Any but CPU leaves the operator callbacks off and the memory reports on.
_MEMORY_ONLY = {ProfilerActivity.MTIA}


class CpuRecorder:
    """Records the CPU allocator of the calling thread."""

    def __init__(self) -> None:
        self._marks: list[tuple[int, Mark]] = []

    def start(self) -> None:
        """Begin to record; blocks that live already are never seen, so start before the model is built."""
        config = ProfilerConfig(ProfilerState.KINETO, False, True, False, False, False, _ExperimentalConfig(), "")
        _prepare_profiler(config, _MEMORY_ONLY)
        _enable_profiler(config, _MEMORY_ONLY)

    def mark(self, mark: Mark) -> None:
        """Put a mark between the last event and the next."""
        self._marks.append((torch.UntypedStorage(MARK_BYTES).data_ptr(), mark))

    def stop(self) -> list[Entry]:
        """End recording and return the events with the marks in their places."""
        fields = (node.extra_fields for node in _disable_profiler().experimental_event_tree())
        events = [
            (field.ptr, field.alloc_size, 0)
            for field in fields
            if isinstance(field, _ExtraFields_Allocation) and field.device.type == "cpu"
        ]
        return place_marks(events, self._marks)
