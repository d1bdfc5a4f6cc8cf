"""Figures computed from a trace: the peaks of steps and phases, and who holds the memory at the peak."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from memprof.documents.comparison import Breakdown
from memprof.trace.events import PhaseSpan, Trace


@dataclass(frozen=True)
class SpanPeak:
    """The peak of one phase of one step.

    Attributes:
        step: the number of the training step; 0 is the build.
        phase: the name of the phase.
        peak_bytes: the largest number of live bytes while the phase was running.
        event: the index of the event after which the peak was reached.
    """

    step: int
    phase: str
    peak_bytes: int
    event: int


@dataclass
class TrainingPeaks:
    """The peaks of the training steps so far.

    Attributes:
        phases: the largest peak of each phase over all steps, in bytes, in the order in which the phases first began.
        steps: the peak of each step in bytes, in order.
        top: the largest peak of all; of equal ones the first.
        with_build: what comes before the first step is a phase too, though no step.
    """

    phases: dict[str, int] = field(default_factory=dict)
    steps: array[int] = field(default_factory=lambda: array("q"))
    top: SpanPeak | None = None
    with_build: bool = False
    _step: int = 0

    def add(self, spans: Iterable[SpanPeak]) -> None:
        """Add the next spans.

        Args:
            spans: the peaks of the spans, in order. If the last span of the previous call had not ended, it may come
                first again.
        """
        for span in spans:
            if span.step == 0 and not self.with_build:
                continue
            if span.step:
                if span.step != self._step:
                    self._step = span.step
                    self.steps.append(span.peak_bytes)
                self.steps[-1] = max(self.steps[-1], span.peak_bytes)
            self.phases[span.phase] = max(self.phases.get(span.phase, 0), span.peak_bytes)
            if self.top is None or span.peak_bytes > self.top.peak_bytes:
                self.top = span


@dataclass(frozen=True)
class Holdings:
    """The live blocks at one instant. The values of each map add up to `total_bytes`.

    Attributes:
        total_bytes: the sum of the live blocks.
        by_category: the bytes of each category.
        by_module: the bytes of each module.
        by_category_and_module: for each category the bytes of each module.
    """

    total_bytes: int
    by_category: dict[str, int]
    by_module: dict[str, int]
    by_category_and_module: dict[str, dict[str, int]]


def span_peaks(trace: Trace, tensors_only: bool = False) -> list[SpanPeak]:
    """Return the peak of every phase span, in order.

    A span begins with the blocks that are alive at its start, so its peak is never below that level.

    Args:
        trace: the events of a trial.
        tensors_only: whether to count only blocks that operators returned to the training step.
    """
    changes: Iterable[int] = (event.size for event in trace.events)
    if tensors_only:
        changes = (event.size if trace.blocks[event.block].tensor else 0 for event in trace.events)
    levels = list(accumulate(changes, initial=0))  # before the first event and after each
    peaks = []
    for span, end in _bounded(trace):
        best = max(levels[span.start : end + 1])
        peaks.append(SpanPeak(span.step, span.phase, best, levels.index(best, span.start) - 1))
    return peaks


def step_levels(trace: Trace, step: int) -> dict[str, list[int]]:
    """Return the live bytes at the start of each phase of a step, and after each of its allocations.

    Two steps that differ only in the batch size have the same allocations in the same order, so their levels can be
    compared one by one.

    Args:
        trace: the events of a trial.
        step: the number of the step.

    Returns:
        The levels of each phase in bytes, in order.
    """
    levels: dict[str, list[int]] = {}
    level = 0
    for span, end in _bounded(trace):
        wanted = levels.setdefault(span.phase, []) if span.step == step else []
        wanted.append(level)
        for event in trace.events[span.start : end]:
            level += event.size
            if event.size > 0:
                wanted.append(level)
    return levels


def holdings_at(trace: Trace, event: int) -> Holdings:
    """Return who holds the memory directly after an event.

    The size of a block is that of its event, which in a replayed trace is the size that the allocator gave it.

    Args:
        trace: the events of a trial.
        event: the index of the event; -1 for the moment before the first.
    """
    live: dict[int, int] = {}
    for number, size in trace.events[: event + 1]:
        if size > 0:
            live[number] = size
        else:
            live.pop(number, None)
    both: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for number, size in live.items():
        block = trace.blocks[number]
        both[block.category][block.module] += size
    by_category = {category: modules.total() for category, modules in both.items()}
    by_module = sum(both.values(), Counter())
    table = {category: dict(modules) for category, modules in both.items()}
    return Holdings(sum(by_category.values()), by_category, dict(by_module), table)


def tensor_peaks(trace: Trace, step: int) -> dict[str, int]:
    """Return the peak of tensor bytes in each phase of a step.

    Args:
        trace: the events of a trial.
        step: the number of the step.
    """
    peaks: dict[str, int] = {}
    for span in span_peaks(trace, tensors_only=True):
        if span.step == step:
            peaks[span.phase] = max(peaks.get(span.phase, 0), span.peak_bytes)
    return peaks


def attributed_breakdown(trace: Trace) -> Breakdown:
    """Return who holds the memory at the peak of the trace's last step, which is the attributed one.

    Args:
        trace: the events of a trial.
    """
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


def _bounded(trace: Trace) -> Iterator[tuple[PhaseSpan, int]]:
    ends = [span.start for span in trace.spans[1:]] + [len(trace.events)]
    yield from zip(trace.spans, ends, strict=True)
