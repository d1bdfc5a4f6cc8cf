"""The figure of the memory during one training step: a panel for each optimizer, all at the same scale."""

from __future__ import annotations

from collections.abc import Iterator

from memprof.documents.comparison import Comparison, Run
from memprof.documents.timeline import Timeline
from memprof.report.figures.svg import WIDTH, Drawing, byte_ticks, clip, text_width
from memprof.units import format_size, tick_size

_LEFT, _RIGHT = 76, 14
_PANEL, _GAP = 92, 26


def draw_steps(comparison: Comparison) -> tuple[str, str] | None:
    """Draw the figure.

    Returns:
        The description of the figure and its SVG; None if no run has a timeline.
    """
    shown = [(run, run.timeline) for run in comparison.runs if run.timeline is not None]
    if not shown:
        return None
    title = f"Memory through one training step: {comparison.name}"
    text = f"{title}, allocation by allocation. {' '.join(_words(run, timeline) for run, timeline in shown)}"
    drawing = Drawing(title, text)
    drawing.legend(_entries(shown), _LEFT, 22, WIDTH - _RIGHT)
    scale = _Scale(shown)
    y = 40.0
    for run, timeline in shown:
        _panel(drawing, scale, run, timeline, y + _GAP)
        y += _GAP + _PANEL
    drawing.text(_LEFT, y + 18, "allocations and frees of the step, in order", "muted")
    return text, drawing.to_svg(y + 30)


class _Scale:
    """The scales of both axes, which all panels share."""

    def __init__(self, shown: list[tuple[Run, Timeline]]) -> None:
        self.ticks = byte_ticks(max(_top(timeline) for _, timeline in shown), 4)
        self._n_events = max(1, *(timeline.n_events for _, timeline in shown))

    def x(self, event: int) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * event / self._n_events

    def height(self, size: int) -> float:
        return _PANEL * size / self.ticks[-1]


def _entries(shown: list[tuple[Run, Timeline]]) -> list[tuple[str, str]]:
    reserved = any(timeline.reserved_bytes for _, timeline in shown)
    return [("soft blue", "allocated"), *([("fill orange", "reserved")] if reserved else [])]


def _panel(drawing: Drawing, scale: _Scale, run: Run, timeline: Timeline, y: float) -> None:
    floor = y + _PANEL
    _bands(drawing, scale, timeline, y)
    for tick in scale.ticks:
        drawing.line(_LEFT, floor - scale.height(tick), WIDTH - _RIGHT, floor - scale.height(tick), "grid")
        drawing.text(_LEFT - 8, floor - scale.height(tick) + 4, tick_size(tick), "muted", "end")
    xs = [scale.x(event) for event in timeline.events]
    level = [(x, floor - scale.height(size)) for x, size in zip(xs, timeline.allocated_bytes, strict=True)]
    drawing.curve([(xs[0], floor), *level, (xs[-1], floor)], "soft blue")
    drawing.curve(level, "curve line blue")
    if timeline.reserved_bytes:
        reserved = zip(xs, timeline.reserved_bytes, strict=True)
        drawing.curve([(x, floor - scale.height(size)) for x, size in reserved], "curve line orange", "7 3")
    peak = max(timeline.allocated_bytes)
    at = timeline.allocated_bytes.index(peak)
    _phase_names(drawing, scale, timeline, floor - 6)
    drawing.mark(*level[at], "circle", "fill vermillion")
    words = f"peak {format_size(peak)}"
    right = xs[at] + 10 + text_width(words) < WIDTH - _RIGHT
    x, anchor = (xs[at] + 8, "start") if right else (xs[at] - 8, "end")
    drawing.text(x, max(level[at][1] + 4, y + 10), words, "onpaper strong", anchor)
    drawing.text(_LEFT, y - 6, clip(run.optimizer.spec, WIDTH - _LEFT - _RIGHT), "strong")


def _bands(drawing: Drawing, scale: _Scale, timeline: Timeline, y: float) -> None:
    """Shade every other phase."""
    for phase, start, end in list(_spans(timeline))[1::2]:
        drawing.rectangle(scale.x(start), y, scale.x(end) - scale.x(start), _PANEL, "band", phase)


def _phase_names(drawing: Drawing, scale: _Scale, timeline: Timeline, y: float) -> None:
    """Write the names of the phases that are wide enough."""
    for phase, start, end in _spans(timeline):
        if scale.x(end) - scale.x(start) > text_width(phase) + 6:
            drawing.text((scale.x(start) + scale.x(end)) / 2, y, phase, "onpaper", "middle")


def _spans(timeline: Timeline) -> Iterator[tuple[str, int, int]]:
    ends = [phase.event for phase in timeline.phases[1:]] + [timeline.n_events]
    for phase, end in zip(timeline.phases, ends, strict=True):
        yield phase.phase, phase.event, end


def _top(timeline: Timeline) -> int:
    return max(*timeline.allocated_bytes, *(timeline.reserved_bytes or ()), 1)


def _words(run: Run, timeline: Timeline) -> str:
    peak = max(timeline.allocated_bytes)
    event = timeline.events[timeline.allocated_bytes.index(peak)]
    phase = [start.phase for start in timeline.phases if start.event <= event][-1]
    reserved = f", reserved up to {format_size(max(timeline.reserved_bytes))}" if timeline.reserved_bytes else ""
    return f"{run.optimizer.spec} peaks at {format_size(peak)} in {phase}{reserved}."
