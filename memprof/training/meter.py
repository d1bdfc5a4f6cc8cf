"""Measures a trial's memory in three layers, without disturbing the steps that are timed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch

from memprof.analysis.profile import holdings_at, span_peaks
from memprof.results import Breakdown, Peak, PhasePeak
from memprof.tracing.events import Mark, Trace


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
        notes: what the reader of these figures must know.
    """

    peak: Peak
    phases: dict[str, PhasePeak]
    step_peaks: list[int]
    breakdown: Breakdown | None
    levels: dict[str, list[int]]
    notes: list[str] = field(default_factory=list)


class Meter(Protocol):
    """Watches one device through a trial: start, phases, one attributed step, finish."""

    def start(self) -> None:
        """Begin, before the model is built."""

    def begin_phase(self, step: int, phase: str) -> None:
        """A phase of a training step begins, and the one before it ends."""

    def begin_attribution(self) -> None:
        """The last step begins; from here on marks say who allocates. What was timed is over."""

    def mark(self, mark: Mark) -> None:
        """Put a mark between the last event and the next; only in the attributed step."""

    def synchronize(self) -> None:
        """Wait until the device has done what it was asked to."""

    def high_water_bytes(self) -> int:
        """Return the most memory used so far, for progress."""

    def finish(self) -> Reading:
        """End measuring."""


def make_meter(device: torch.device) -> Meter:
    """Return the meter for a device."""
    if device.type == "cuda":
        from memprof.training.cuda_meter import CudaMeter

        return CudaMeter(device)
    from memprof.training.cpu_meter import CpuMeter

    return CpuMeter()


def repeatability_note(step_peaks: list[int]) -> list[str]:
    """Say so where steps that should be alike (all after the first two) needed different amounts."""
    steady = step_peaks[1:]
    if len(steady) < 2 or min(steady) == max(steady):
        return []
    spread = (max(steady) - min(steady)) / max(steady)
    return [f"The allocator's peak differs between steps by {max(steady) - min(steady)} bytes ({spread:.2%})."]


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
    )
