"""Records every allocation and free of a device's allocator, and the operators around them, by PyTorch's profiler.

Two sessions follow each other without a gap. The first records only memory, without operator callbacks. It takes about
0.2 microseconds and 60 bytes for each event, so it may run while steps are timed. The second adds the operators.
Neither puts anything between a program and its tensors, so the program behaves as it does without a recorder. (A
dispatch mode, by contrast, keeps the autograd engine from adding gradients in place.)

Reading an event takes a kilobyte and about 20 microseconds. So the events of the first session are read now and then
(`collect`), and the session begins again, which takes half a millisecond and leaves no gap either.

The record has every block of the device's PyTorch allocator, scratch memory inside kernels included. It does not have
memory that libraries take from the system themselves (scratch memory of oneDNN and BLAS), which appears only in the
process's figure.

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

# The profiler needs one activity. Any but CPU leaves the operator callbacks off and the memory reports on.
_MEMORY_ONLY = ProfilerActivity.MTIA


class ProfilerRecorder:
    """Records one device's allocator, from `start` to `stop`.

    Args:
        device_type: The type of the device, `cpu` or `cuda`.
        device_index: The index of the CUDA device.

    Attributes:
        history: The CUDA allocator's own record of the events that were returned last; empty on the CPU.
    """

    def __init__(self, device_type: str, device_index: int = 0) -> None:
        self.history: list[HistoryEvent] = []
        self._device_type = device_type
        self._device_index = device_index
        self._marks: list[tuple[int, Mark]] = []
        self._sessions: list[Any] = []
        self._first_mark = 0  # of the session that runs

    def start(self) -> None:
        """Begin to record. Blocks that exist already are never seen, so start before the model is built."""
        if self._device_type == "cuda":
            start_history()
        _begin_session(_MEMORY_ONLY)

    def follow_operators(self) -> None:
        """Record operators too, from now on."""
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
        """Return the events so far with the marks in their places, and continue with an empty record.

        Call this only before operators are followed. The allocator must be idle during the call, so Python's garbage
        collector, which may free tensors, must be off.
        """
        self._sessions.append(_disable_profiler())
        if self._device_type == "cuda":
            self.history = read_history(self._device_index)
            start_history()
        _begin_session(_MEMORY_ONLY)
        return self._read()

    def mark(self, mark: Mark) -> None:
        """Put a mark between the last event and the next, as a block of its own that is removed later.

        Args:
            mark: The mark.
        """
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
