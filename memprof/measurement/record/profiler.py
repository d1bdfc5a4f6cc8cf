"""Every allocation and free of a device's allocator, and the operators around them, from PyTorch's profiler.

Two sessions follow each other without a gap. The first records memory alone: no operator callbacks, about 0.2
microseconds and 60 bytes per event, so it may run while steps are timed. The second adds the operators. Neither puts
anything between a program and its tensors, so what is recorded is what happens without a recorder (a dispatch mode, by
contrast, keeps the autograd engine from adding gradients in place).

An event that is read takes a kilobyte and about 20 microseconds, so what the first session has is read now and then
(`collect`), and the session begins anew: half a millisecond, without a gap either.

What is seen is every block of the device's PyTorch allocator, scratch inside kernels included, and not what libraries
take from the system themselves (oneDNN's and BLAS's own scratch): that shows in the process's figure only.

Private API (see `memprof.torch_private`): `torch._C._autograd._enable_profiler`, `_disable_profiler`,
`torch._C._profiler.ProfilerConfig` and `experimental_event_tree` (torch/csrc/autograd/init.cpp).
"""

from __future__ import annotations

from typing import Any

import torch
from torch._C._autograd import _disable_profiler, _enable_profiler, _prepare_profiler
from torch._C._profiler import ProfilerActivity, ProfilerConfig, ProfilerState, _ExperimentalConfig

from memprof.measurement.record.cuda_events import Loose, loose_events
from memprof.measurement.record.cuda_history import HistoryEvent, read_history, start_history, stop_history
from memprof.measurement.record.event_tree import flatten, name_modules
from memprof.measurement.record.mark_blocks import MARK_BYTES, place_marks
from memprof.trace.events import Allocation, Entry, Mark

# The profiler wants one activity. Any but CPU leaves the operator callbacks off and the memory reports on.
_MEMORY_ONLY = ProfilerActivity.MTIA


class ProfilerRecorder:
    """Records one device's allocator, from `start` to `stop`.

    Args:
        device_type: `cpu` or `cuda`.
        device_index: of the CUDA device.

    Attributes:
        history: what the CUDA allocator recorded itself of the events that were returned last; empty on the CPU.
    """

    def __init__(self, device_type: str, device_index: int = 0) -> None:
        self.history: list[HistoryEvent] = []
        self._device_type = device_type
        self._device_index = device_index
        self._marks: list[tuple[int, Mark]] = []
        self._sessions: list[Any] = []
        self._first_mark = 0  # of the session that runs

    def start(self) -> None:
        """Begin to record; blocks that live already are never seen, so start before the model is built."""
        if self._device_type == "cuda":
            start_history()
        _begin_session(_MEMORY_ONLY)

    def follow_operators(self) -> None:
        """From here on record operators too."""
        self._sessions.append(_disable_profiler())
        _begin_session(ProfilerActivity.CPU)

    def step_sizes(self) -> list[int]:
        """Return the size of each block that was allocated since the last call, in order, and go on in a new session.

        Operators are not yet followed: a session of theirs must not end within one. The events are read once more in
        the end.
        """
        first, self._first_mark = self._first_mark, len(self._marks)
        self._sessions.append(_disable_profiler())
        _begin_session(_MEMORY_ONLY)
        waiting = iter(self._marks[first:])
        mark, sizes = next(waiting, None), list[int]()
        for entry in flatten([self._sessions[-1].experimental_event_tree()], self._device_type):
            if isinstance(entry, Allocation) and mark is not None and entry[:2] == (mark[0], MARK_BYTES):
                mark = next(waiting, None)
            elif isinstance(entry, Allocation):
                sizes.append(entry.size)
        return sizes

    def collect(self) -> list[Entry]:
        """Return the events so far with the marks in their places, and go on with an empty record.

        Operators are not yet followed, and no event of an allocator may fall into the call: Python's garbage collector,
        which may free tensors, must be off.
        """
        self._sessions.append(_disable_profiler())
        if self._device_type == "cuda":
            self.history = read_history(self._device_index)
            start_history()
        _begin_session(_MEMORY_ONLY)
        return self._read()

    def mark(self, mark: Mark) -> None:
        """Put a mark between the last event and the next: a block of its own, which is taken out again."""
        self._marks.append((torch.UntypedStorage(MARK_BYTES).data_ptr(), mark))

    def stop(self) -> list[Entry]:
        """End recording and return the events since it began or was last collected, with the marks in their places."""
        self._sessions.append(_disable_profiler())
        if self._device_type == "cuda":
            self.history = read_history(self._device_index)
            stop_history()
        return self._read()

    def _read(self) -> list[Entry]:
        sessions, marks = self._sessions, self._marks
        self._sessions, self._marks = [], []
        trees = [session.experimental_event_tree() for session in sessions]
        loose: list[list[Loose]] = []
        if self._device_type == "cuda":
            loose = loose_events(sessions, self.history, self._device_index)
        return name_modules(place_marks(flatten(trees, self._device_type, loose), marks))


def _begin_session(activity: ProfilerActivity) -> None:
    config = ProfilerConfig(ProfilerState.KINETO, False, True, False, False, False, _ExperimentalConfig(), "")
    _prepare_profiler(config, {activity})
    _enable_profiler(config, {activity})
