"""The meter for the CPU: exact allocator events, and the kernel's high-water mark of the process."""

from __future__ import annotations

from memprof.analysis.profile import span_peaks, step_levels
from memprof.results import Peak, PhasePeak
from memprof.tracing.attribution import build_trace
from memprof.tracing.cpu_allocator import CpuRecorder
from memprof.tracing.events import Mark, PhaseMark
from memprof.training.meter import Reading, attributed_breakdown, repeatability_note, tensor_peaks
from memprof.training.process_memory import peak_rss_bytes, reset_peak_rss


class CpuMeter:
    """Records every event of the CPU allocator from the first on; the attributed step has marks in between."""

    def __init__(self) -> None:
        self._recorder = CpuRecorder()
        self._process_bytes: int | None = None
        self._notes: list[str] = []

    def start(self) -> None:
        """Begin, before the model is built."""
        if not reset_peak_rss():
            self._notes.append("The process figure includes the start of the worker: this kernel cannot reset it.")
        self._recorder.start()

    def begin_phase(self, step: int, phase: str) -> None:
        """A phase of a training step begins, and the one before it ends."""
        self._recorder.mark(PhaseMark(step, phase))

    def begin_attribution(self) -> None:
        """Take the process's figure now: the marks of the attributed step are the tracker's own memory."""
        self._process_bytes = peak_rss_bytes()

    def mark(self, mark: Mark) -> None:
        """Put a mark between the last event and the next."""
        self._recorder.mark(mark)

    def synchronize(self) -> None:
        """Do nothing: the CPU is done when the call returns."""

    def high_water_bytes(self) -> int:
        """Return the process's high-water mark."""
        return peak_rss_bytes()

    def finish(self) -> Reading:
        """End recording and analyse the trace."""
        attributed = self._process_bytes is not None
        trace = build_trace(self._recorder.stop())
        spans = [span for span in span_peaks(trace) if span.step > 0]
        top = max(spans, key=lambda span: span.peak_bytes)
        step_peaks = [max(s.peak_bytes for s in spans if s.step == step) for step in sorted({s.step for s in spans})]
        tensors = tensor_peaks(trace, spans[-1].step) if attributed else {}
        phases = {
            phase: PhasePeak(
                tensor_bytes=tensors.get(phase),
                allocated_bytes=max(s.peak_bytes for s in spans if s.phase == phase),
            )
            for phase in dict.fromkeys(span.phase for span in spans)
        }
        peak = Peak(
            tensor_bytes=max(tensors.values()) if tensors else None,
            allocated_bytes=top.peak_bytes,
            process_bytes=self._process_bytes,
            phase=top.phase,
            step=top.step,
        )
        breakdown = attributed_breakdown(trace) if attributed else None
        return Reading(
            peak=peak,
            phases=phases,
            step_peaks=step_peaks,
            breakdown=breakdown,
            levels={
                phase: [*levels, phases[phase].allocated_bytes]
                for phase, levels in step_levels(trace, spans[-1].step).items()
            },
            notes=self._notes + repeatability_note(step_peaks),
        )
