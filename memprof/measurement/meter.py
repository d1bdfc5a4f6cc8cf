"""Measures a trial's memory in three layers, without disturbing the steps."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from memprof.documents.comparison import Breakdown, Peak, PhasePeak
from memprof.documents.confidence import AllocatorHistory
from memprof.documents.timeline import Timeline
from memprof.measurement.probes import make_probe
from memprof.measurement.record.cuda_events import as_requested
from memprof.measurement.record.profiler import ProfilerRecorder
from memprof.trace.attribution import TraceBuilder, label_buckets, label_workspaces
from memprof.trace.events import Entry, Mark, PhaseMark, Trace
from memprof.trace.peaks import TrainingPeaks, attributed_breakdown, span_peaks, step_levels, tensor_peaks
from memprof.trace.timeline import make_timeline
from memprof.units import format_size

# The record is reduced for the first time after this many steps, and then whenever it has about this many events.
_STEPS_AT_FIRST = 4
_EVENTS = 4096


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The figures of a meter. The attributed step is the last one, whose operators and owners are recorded.

    Attributes:
        peak: The peaks of all training steps.
        phases: The largest peak of each phase over all steps.
        step_peaks: The allocator's peak in bytes of each step, in order.
        breakdown: The owners at the peak of the attributed step; None if no step was attributed.
        levels: For each phase, the bytes that count against a capacity as they rise and fall during the last step,
            followed by the peak of the phase over all steps.
        operators: For each phase, the operators of the attributed step.
        allocator_history: The record of the CUDA allocator; None on the CPU.
        timeline: The timeline of the attributed step; None if no step was attributed.
        trace: The trace from which the figures were computed. Of steps that were reduced it has only the blocks that
            are still alive.
        notes: Sentences that a reader of the figures must know.
    """

    peak: Peak
    phases: dict[str, PhasePeak]
    step_peaks: list[int]
    breakdown: Breakdown | None
    levels: dict[str, list[int]]
    operators: dict[str, set[str]]
    trace: Trace
    allocator_history: AllocatorHistory | None = None
    timeline: Timeline | None = None
    notes: list[str] = field(default_factory=list)


class Meter:
    """Watches one device during a trial: start, phases, one attributed step, finish.

    The allocator's events are recorded from the start. The memory of the process is read before the attributed step,
    because from then on it includes the record of operators.

    Args:
        device: The device to watch.
        before: The events on the device before `start`, so that the trace begins in an empty process.
        whole: Whether the trace keeps the record of every step, which then grows with the number of steps.
        with_build: Whether the time before the first training step is a phase, which may set the peak.
    """

    def __init__(
        self, device: torch.device, before: Sequence[Entry] = (), *, whole: bool = False, with_build: bool = False
    ) -> None:
        self._whole = whole
        self._steps = 0  # in the record
        self._most_steps = _STEPS_AT_FIRST
        self._peaks = TrainingPeaks(with_build=with_build)
        self._rounded = TraceBuilder()
        # A CUDA allocator hands out more than what was requested of it.
        self._requested = self._rounded if device.type == "cpu" else TraceBuilder()
        self._builders = list(dict.fromkeys((self._rounded, self._requested)))
        self._streams: dict[int, int] = {}
        for builder in self._builders:
            builder.take(before)
        self._probe = make_probe(device)
        self._recorder = ProfilerRecorder(device.type, device.index or 0)
        self._phase = "build"
        self._process_bytes: int | None = None
        self._attributed = False

    def start(self) -> None:
        """Begin to record, before the model is built.

        Raises:
            UsageError: The allocator of the device cannot be measured.
        """
        self._probe.start()
        self._summary = self._probe.summary()
        self._recorder.start()

    def begin_phase(self, step: int, phase: str) -> None:
        """End the phase that runs and begin another.

        Args:
            step: The number of the training step, from 1.
            phase: The name of the phase that begins.
        """
        self._probe.end_phase(self._phase)
        self._phase = phase
        self._recorder.mark(PhaseMark(step, phase))

    def begin_step(self) -> None:
        """Prepare for a training step, and reduce the record of earlier steps to their peaks if it has grown long.

        This work is no part of a step, so call it before the time of the step is taken.
        """
        if self._steps >= self._most_steps and not self._whole:
            with self._probe.aside(), _no_garbage_collection():
                events = self.take_entries(self._recorder.collect())
                self._peaks.add(span_peaks(self._rounded.trace))
                for builder in self._builders:
                    builder.forget()
            self._most_steps = max(1, _EVENTS * self._steps // max(1, events))
            self._steps = 0
        self._steps += 1

    def begin_attribution(self) -> None:
        """Record operators from now on. The last step is about to begin, and marks will say who allocates."""
        self._process_bytes = self._probe.process_bytes()
        self._attributed = True
        self._recorder.follow_operators()

    def step_sizes(self) -> list[int]:
        """Return what was allocated since the last call, by which two steps can be told to be alike.

        It is called before `begin_attribution`.
        """
        counted = self._probe.allocations()
        if counted:
            return counted
        with self._probe.aside(), _no_garbage_collection():
            return self._recorder.step_sizes()

    def mark(self, mark: Mark) -> None:
        """Put a mark between the last event and the next.

        Args:
            mark: The mark.
        """
        self._recorder.mark(mark)

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""
        self._probe.synchronize()

    def high_water_bytes(self) -> int:
        """Return the highest memory use so far in bytes, to show progress."""
        return self._probe.high_water_bytes()

    def finish(
        self,
        buckets: Collection[int] = (),
        tidied: Callable[[list[Entry]], list[Entry]] = list,
    ) -> Reading:
        """End recording and analyse the trace.

        Args:
            buckets: The sizes in bytes of the buckets in which DDP reduces gradients.
            tidied: Is applied to the stream of events before it is analysed.

        Returns:
            The figures.
        """
        self._probe.end_phase(self._phase)
        self.take_entries(tidied(self._recorder.stop()))
        trace, requested = self._rounded.trace, self._requested.trace
        peaks = self._peaks
        peaks.add(span_peaks(trace))
        assert peaks.top is not None
        step_peaks = list(peaks.steps)
        label_workspaces(trace, requested, self._probe.workspace_bytes())
        label_buckets(trace, requested, buckets)
        tensors = self._tensor_peaks(requested)
        reserved = self._probe.reserved
        return Reading(
            peak=Peak(
                tensor_bytes=max(tensors.values(), default=None),
                allocated_bytes=peaks.top.peak_bytes,
                reserved_bytes=max(reserved.values(), default=None),
                process_bytes=self._process_bytes,
                phase=peaks.top.phase,
                step=peaks.top.step,
            ),
            phases=_phase_peaks(peaks.phases, tensors, reserved),
            step_peaks=step_peaks,
            breakdown=attributed_breakdown(trace) if self._attributed else None,
            levels=self._levels(trace),
            operators=trace.operators,
            trace=trace,
            allocator_history=self._summary.finish() if self._summary is not None else None,
            timeline=make_timeline(trace) if self._attributed else None,
            notes=self._probe.notes + repeatability_note(step_peaks),
        )

    def take_entries(self, entries: list[Entry]) -> int:
        """Add the next piece of the record to the trace.

        Args:
            entries: The events and marks of the piece.

        Returns:
            The number of entries.
        """
        history = self._recorder.history
        if self._requested is not self._rounded:
            self._requested.take(as_requested(entries, history, self._streams))
        self._rounded.take(entries)
        if self._summary is not None:
            self._summary.add(history, entries)
        return len(entries)

    def _tensor_peaks(self, trace: Trace) -> dict[str, int]:
        """Return the peak of all tensors in each phase of the attributed step, in a trace with sizes as requested."""
        return tensor_peaks(trace, trace.spans[-1].step) if self._attributed else {}

    def _levels(self, trace: Trace) -> dict[str, list[int]]:
        if self._probe.reserved:
            return {phase: [peak] for phase, peak in self._probe.reserved.items() if phase != "build"}
        return {
            phase: [*levels, self._peaks.phases[phase]]
            for phase, levels in step_levels(trace, trace.spans[-1].step).items()
        }


def repeatability_note(step_peaks: list[int]) -> list[str]:
    """Return a note if the steps after the first, which should all take the same memory, took different amounts.

    Args:
        step_peaks: The allocator's peak in bytes of each step. The first step makes the optimizer's state.

    Returns:
        One sentence; an empty list if the steps are the same or too few.
    """
    steady = step_peaks[1:]
    if len(steady) < 2 or min(steady) == max(steady):
        return []
    least, most = min(steady), max(steady)
    spread = f"{format_size(least)} to {format_size(most)}, {100 * (most - least) / most:.2g} %"
    return [f"Measured again, the peak differs: steps after the first needed {spread} apart; the highest is shown."]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep the garbage collector from running because of objects that are made here: it may free training tensors."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _phase_peaks(phases: dict[str, int], tensors: dict[str, int], reserved: dict[str, int]) -> dict[str, PhasePeak]:
    return {
        phase: PhasePeak(
            tensor_bytes=tensors.get(phase),
            allocated_bytes=peak,
            reserved_bytes=reserved.get(phase),
        )
        for phase, peak in phases.items()
    }
