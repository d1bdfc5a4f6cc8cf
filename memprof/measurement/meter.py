"""Measures a trial's memory in three layers, without disturbing the steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch

from memprof.documents.comparison import Breakdown, Peak, PhasePeak
from memprof.documents.confidence import AllocatorHistory
from memprof.documents.timeline import Timeline
from memprof.measurement.probes import make_probe
from memprof.measurement.record.cuda_events import as_requested
from memprof.measurement.record.profiler import ProfilerRecorder
from memprof.trace.attribution import build_trace
from memprof.trace.events import Entry, Mark, PhaseMark, Trace
from memprof.trace.peaks import SpanPeak, holdings_at, span_peaks, step_levels
from memprof.trace.timeline import make_timeline
from memprof.units import format_size


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a meter found.

    Attributes:
        peak: of all training steps.
        phases: the largest peak of each phase over all steps.
        step_peaks: the allocator's peak of each step, in order.
        breakdown: at the peak of the attributed step, None where there was none.
        levels: by phase, the bytes that count against a capacity as they rise and fall through the last step, and
            last the phase's peak over all steps.
        operators: by phase, the operators of the attributed step.
        allocator_history: what the CUDA allocator recorded, None on the CPU.
        timeline: of the attributed step, None where there was none.
        trace: that all of this was computed from.
        notes: what the reader of these figures must know.
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
    """Watches one device through a trial: start, phases, one attributed step, finish.

    The allocator's events are recorded from the first on. The process is read before the attributed step, because
    from there on the record of operators is part of it.

    Args:
        device: to watch.
        before: what happened there before `start`, for the trace to begin in an empty process.
    """

    def __init__(self, device: torch.device, before: Sequence[Entry] = ()) -> None:
        self._device = device
        self._before = before
        self._probe = make_probe(device)
        self._recorder = ProfilerRecorder(device.type, device.index or 0)
        self._phase = "build"
        self._process_bytes: int | None = None
        self._attributed = False

    def start(self) -> None:
        """Begin, before the model is built."""
        self._probe.start()
        self._recorder.start()

    def begin_phase(self, step: int, phase: str) -> None:
        """A phase of a training step begins, and the one before it ends."""
        self._probe.end_phase(self._phase)
        self._phase = phase
        self._recorder.mark(PhaseMark(step, phase))

    def begin_attribution(self) -> None:
        """The last step begins: from here on operators are recorded, and marks say who allocates."""
        self._process_bytes = self._probe.process_bytes()
        self._attributed = True
        self._recorder.follow_operators()

    def mark(self, mark: Mark) -> None:
        """Put a mark between the last event and the next."""
        self._recorder.mark(mark)

    def synchronize(self) -> None:
        """Wait until the device has done what it was asked to."""
        self._probe.synchronize()

    def high_water_bytes(self) -> int:
        """Return the most memory used so far, for progress."""
        return self._probe.high_water_bytes()

    def finish(
        self,
        buckets: Collection[int] = (),
        tidied: Callable[[list[Entry]], list[Entry]] = list,
        *,
        with_build: bool = False,
    ) -> Reading:
        """End recording and analyse the trace.

        Args:
            buckets: sizes of those in which DDP reduces gradients.
            tidied: what is done to the stream of events before it is analysed.
            with_build: what comes before the first training step is a phase, and may set the peak.
        """
        self._probe.end_phase(self._phase)
        entries = tidied(self._recorder.stop())
        trace = build_trace([*self._before, *entries])
        history = self._recorder.history
        spans = [span for span in span_peaks(trace) if span.step > 0 or with_build]
        top = max(spans, key=lambda span: span.peak_bytes)
        step_peaks = [
            max(s.peak_bytes for s in spans if s.step == step) for step in sorted({s.step for s in spans} - {0})
        ]
        requested = build_trace([*self._before, *as_requested(entries, history)]) if history else trace
        label_workspaces(trace, requested, self._probe.workspace_bytes())
        label_buckets(trace, requested, buckets)
        tensors = self._tensor_peaks(requested)
        reserved = self._probe.reserved
        return Reading(
            peak=Peak(
                tensor_bytes=max(tensors.values(), default=None),
                allocated_bytes=top.peak_bytes,
                reserved_bytes=max(reserved.values(), default=None),
                process_bytes=self._process_bytes,
                phase=top.phase,
                step=top.step,
            ),
            phases=_phase_peaks(spans, tensors, reserved),
            step_peaks=step_peaks,
            breakdown=attributed_breakdown(trace) if self._attributed else None,
            levels=self._levels(trace, spans),
            operators=trace.operators,
            trace=trace,
            allocator_history=self._probe.described(history, entries) if history else None,
            timeline=make_timeline(trace) if self._attributed else None,
            notes=self._probe.notes + repeatability_note(step_peaks),
        )

    def _tensor_peaks(self, trace: Trace) -> dict[str, int]:
        """Return the tensors' peak in each phase of the attributed step, of a trace with sizes as requested."""
        return tensor_peaks(trace, trace.spans[-1].step) if self._attributed else {}

    def _levels(self, trace: Trace, spans: list[SpanPeak]) -> dict[str, list[int]]:
        if self._probe.reserved:
            return {phase: [peak] for phase, peak in self._probe.reserved.items() if phase != "build"}
        return {
            phase: [*levels, max(span.peak_bytes for span in spans if span.phase == phase)]
            for phase, levels in step_levels(trace, spans[-1].step).items()
        }


def label_workspaces(trace: Trace, requested: Trace, size: int | None) -> None:
    """Name what libraries keep: blocks of their workspaces' size that nobody has, and that are never given back.

    Args:
        trace: whose blocks to name.
        requested: the same trace with sizes as requested.
        size: of a workspace; None where there is none.
    """
    for number in _kept(requested, {size}):
        if trace.blocks[number].category == "unattributed":
            trace.blocks[number].category = "workspace"


def label_buckets(trace: Trace, requested: Trace, sizes: Collection[int]) -> None:
    """Name the buckets in which DDP's reducer, which is in C++, keeps gradients for the others: nobody else has them.

    Args:
        trace: whose blocks to name.
        requested: the same trace with sizes as requested.
        sizes: of the buckets.
    """
    for number in _kept(requested, sizes):
        for block in (trace.blocks[number], requested.blocks[number]):
            if block.category in ("unattributed", "temporaries", "activations"):
                block.category, block.module, block.tensor = "communication", "", True


def _kept(requested: Trace, sizes: Collection[int | None]) -> list[int]:
    """Return the blocks of certain sizes that are never given back."""
    if not any(sizes):
        return []
    freed = {number for number, change in requested.events if change < 0}
    blocks = enumerate(requested.blocks)
    return [number for number, block in blocks if block.size in sizes and number not in freed]


def tensor_peaks(trace: Trace, step: int) -> dict[str, int]:
    """Return the peak of tensor bytes in each phase of a step."""
    peaks: dict[str, int] = {}
    for span in span_peaks(trace, tensors_only=True):
        if span.step == step:
            peaks[span.phase] = max(peaks.get(span.phase, 0), span.peak_bytes)
    return peaks


def attributed_breakdown(trace: Trace) -> Breakdown:
    """Return who holds the memory at the peak of the trace's last step, the attributed one."""
    spans = span_peaks(trace)
    top = max((span for span in spans if span.step == spans[-1].step), key=lambda span: span.peak_bytes)
    holdings = holdings_at(trace, top.event)
    return Breakdown(
        total_bytes=holdings.total_bytes,
        phase=top.phase,
        by_category=holdings.by_category,
        by_module=holdings.by_module,
        by_category_and_module=holdings.by_category_and_module,
    )


def repeatability_note(step_peaks: list[int]) -> list[str]:
    """Say so where steps that should be alike (all after the first, which makes the state) needed different amounts."""
    steady = step_peaks[1:]
    if len(steady) < 2 or min(steady) == max(steady):
        return []
    least, most = min(steady), max(steady)
    spread = f"{format_size(least)} to {format_size(most)}, {100 * (most - least) / most:.2g} %"
    return [f"Measured again, the peak differs: steps after the first needed {spread} apart; the highest is shown."]


def _phase_peaks(spans: list[SpanPeak], tensors: dict[str, int], reserved: dict[str, int]) -> dict[str, PhasePeak]:
    return {
        phase: PhasePeak(
            tensor_bytes=tensors.get(phase),
            allocated_bytes=max(span.peak_bytes for span in spans if span.phase == phase),
            reserved_bytes=reserved.get(phase),
        )
        for phase in dict.fromkeys(span.phase for span in spans)
    }
