"""The figure of the peak against the batch size: a line for each optimizer, the capacity, and failed batch sizes."""

from __future__ import annotations

from dataclasses import dataclass

from memprof.documents.comparison import Comparison, FitAnswer
from memprof.documents.vary import BATCH
from memprof.report.figures.svg import DASHES, INKS, MARKS, WIDTH, Drawing, byte_ticks, clip
from memprof.units import format_size, tick_size

_LEFT, _RIGHT, _TOP, _HEIGHT = 76, 24, 34, 260
_ENTRY = 240


@dataclass(frozen=True)
class _Series:
    """The points of one optimizer.

    Attributes:
        name: The optimizer spec.
        points: The batch sizes with their peak in bytes, and whether each was tried or extrapolated.
        failed: The batch sizes that ran out of memory.
    """

    name: str
    points: list[tuple[int, int, bool]]
    failed: list[int]


def draw_batches(comparison: Comparison) -> tuple[str, str] | None:
    """Draw the figure.

    Returns:
        The description of the figure and its SVG; None if no largest batch size was searched for.
    """
    answers = [
        (run.optimizer.spec, run.fit.batch_size)
        for run in comparison.runs
        if run.fit is not None and run.fit.batch_size is not None
    ]
    shown = [_series(spec, answer) for spec, answer in answers]
    shown = [series for series in shown if series.points or series.failed]
    if not any(len(series.points) > 1 or series.failed for series in shown):
        return None
    return _Batches(comparison, answers[0][1].knob, shown).drawn()


class _Batches:
    """Draws the figure step by step."""

    def __init__(self, comparison: Comparison, knob: str, shown: list[_Series]) -> None:
        self._shown, self._capacity = shown, comparison.capacity.bytes
        peaks = [size for series in shown for _, size, _ in series.points]
        self._ticks = byte_ticks(max([*peaks, self._capacity]))
        values = [value for series in shown for value, _, _ in series.points]
        self._last = max([*values, *(value for series in shown for value in series.failed), 1])
        self._knob = "batch size" if knob == BATCH else knob
        title = f"Peak against {self._knob}: {comparison.name}"
        self._text = f"{title}, capacity {format_size(self._capacity)}. {' '.join(_words(series) for series in shown)}"
        self._drawing = Drawing(title, self._text)

    def drawn(self) -> tuple[str, str]:
        self._axes()
        for number, series in enumerate(self._shown):
            self._line(series, number)
        words = f"capacity {format_size(self._capacity)}"
        y = self._y(self._capacity)
        self._drawing.line(_LEFT, y, WIDTH - _RIGHT, y, "limit")
        self._drawing.text(_LEFT + 8, y - 6, words, "onpaper strong")
        bottom = self._legend(_TOP + _HEIGHT + 62)
        return self._text, self._drawing.to_svg(bottom + 14)

    def _x(self, value: int) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * value / self._last

    def _y(self, size: int) -> float:
        return _TOP + _HEIGHT * (1 - size / self._ticks[-1])

    def _axes(self) -> None:
        drawing, floor = self._drawing, _TOP + _HEIGHT
        for tick in self._ticks:
            drawing.line(_LEFT, self._y(tick), WIDTH - _RIGHT, self._y(tick), "grid")
            drawing.text(_LEFT - 8, self._y(tick) + 4, tick_size(tick), "muted", "end")
        for value in _steps(self._last):
            drawing.line(self._x(value), floor, self._x(value), floor + 5, "axis")
            drawing.text(self._x(value), floor + 18, str(value), "muted", "middle")
        drawing.text((_LEFT + WIDTH - _RIGHT) / 2, floor + 36, self._knob, "muted", "middle")

    def _line(self, series: _Series, number: int) -> None:
        drawing, ink = self._drawing, INKS[number % len(INKS)]
        shape = MARKS[number % len(MARKS)]
        line = [(self._x(value), self._y(size)) for value, size, _ in series.points]
        if len(line) > 1:
            drawing.curve(line, f"curve line {ink}", DASHES[number % len(DASHES)])
        for (x, y), (_, _, tried) in zip(line, series.points, strict=True):
            drawing.mark(x, y, shape, f"fill {ink}" if tried else f"hollow {ink}")
        for value in series.failed:
            drawing.mark(self._x(value), _TOP - 12, "cross", f"curve line {ink}")

    def _legend(self, y: float) -> float:
        drawing, place = self._drawing, 12.0
        for number, series in enumerate(self._shown):
            ink = INKS[number % len(INKS)]
            drawing.curve([(place, y - 4), (place + 34, y - 4)], f"curve line {ink}", DASHES[number % len(DASHES)])
            drawing.mark(place + 17, y - 4, MARKS[number % len(MARKS)], f"fill {ink}")
            drawing.text(place + 42, y, clip(series.name, _ENTRY - 50))
            place += _ENTRY
            if place + _ENTRY > WIDTH and number + 1 < len(self._shown):
                place, y = 12.0, y + 20
        known = [tried for series in self._shown for _, _, tried in series.points]
        words = ["filled: tried" if all(known) else "filled: tried, hollow: extrapolated"]
        words += ["crossed: out of memory"] if any(series.failed for series in self._shown) else []
        drawing.text(12, y + 22, "; ".join(words), "muted")
        return y + 22


def _series(name: str, answer: FitAnswer) -> _Series:
    tried = {point.value: point.peak_bytes for point in answer.points}
    points = {value: (size, True) for value, size in tried.items() if size is not None}
    for value, size in ((answer.value, answer.peak_bytes), (answer.next_value, answer.next_peak_bytes)):
        if value and size is not None:
            points.setdefault(value, (size, False))
    return _Series(
        name=name,
        points=[(value, *points[value]) for value in sorted(points)],
        failed=sorted(value for value, size in tried.items() if size is None and value not in points),
    )


def _steps(last: int) -> range:
    step = next(step * 10**power for power in range(20) for step in (1, 2, 5) if last <= 8 * step * 10**power)
    return range(0, last + 1, step)


def _words(series: _Series) -> str:
    parts = [
        f"{value}: {format_size(size)}{'' if tried else ' (extrapolated)'}" for value, size, tried in series.points
    ]
    parts += [f"{value}: out of memory" for value in series.failed]
    return f"{series.name} {', '.join(parts)}."
