"""The figure of what holds the memory at the peak: a stacked bar for each optimizer, and the capacity."""

from __future__ import annotations

from memprof.documents.comparison import Comparison, Run
from memprof.documents.wording import category_title
from memprof.report.content import sections
from memprof.report.figures.svg import WIDTH, Drawing, byte_ticks, clip, text_width
from memprof.units import format_share, format_size, tick_size

COLOURS = {
    "parameters": "blue",
    "gradients": "sky",
    "optimizer_state": "vermillion",
    "activations": "green",
    "temporaries": "yellow",
    "buffers": "purple",
    "inputs": "grey",
    "workspace": "orange",
    "communication": "brown",
    "unattributed": "dark",
}
_ROW, _BAR = 30, 18
_NAMES, _TOTALS, _RESERVED = 170, 86, 110
# The capacity is drawn to scale only up to this multiple of the largest peak; beyond it, the bars would be too short.
_FAR = 2.5


def draw_peaks(comparison: Comparison) -> tuple[str, str] | None:
    """Draw the figure.

    Returns:
        The description of the figure and its SVG; None if no run has a breakdown of its peak.
    """
    shown = sections.breakdowns(comparison)
    if not shown:
        return None
    return _Peaks(comparison).drawn()


class _Peaks:
    """Draws the figure from top to bottom."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._categories = sections.present_categories(comparison)
        self._capacity = comparison.capacity.bytes
        self._most = max(1, *(_top(run) for run in comparison.runs))
        self._right = _NAMES + _TOTALS  # the width that is not used by the bars
        if any(run.peak is not None and run.peak.reserved_bytes is not None for run in comparison.runs):
            self._right += _RESERVED
        self._near = self._capacity <= _FAR * self._most
        self._ticks = byte_ticks(max(self._most, self._capacity) if self._near else self._most)
        title = f"Who holds the memory at the peak: {comparison.name}"
        self._text = f"{title}. {' '.join(_words(run) for run in comparison.runs)}"
        self._drawing = Drawing(title, self._text)

    def drawn(self) -> tuple[str, str]:
        drawing = self._drawing
        entries = [(f"fill {COLOURS.get(name, 'grey')}", category_title(name)) for name in self._categories]
        top = drawing.legend(entries, 12, 24, WIDTH - 12) + 18
        bottom = top + 14 + _ROW * len(self._comparison.runs)
        self._axis(top + 14, bottom)
        for number, run in enumerate(self._comparison.runs):
            self._bar(run, top + 14 + _ROW * number)
        self._limit(top, bottom)
        for number, run in enumerate(self._comparison.runs):  # last, so that the text is above the line of the limit
            self._totals(run, top + 14 + _ROW * number)
        return self._text, drawing.to_svg(bottom + 30)

    def _x(self, size: int) -> float:
        return _NAMES + (WIDTH - self._right) * size / self._ticks[-1]

    def _axis(self, top: float, bottom: float) -> None:
        for tick in self._ticks:
            self._drawing.line(self._x(tick), top, self._x(tick), bottom, "grid")
            self._drawing.text(self._x(tick), bottom + 18, tick_size(tick), "muted", "middle")

    def _bar(self, run: Run, y: float) -> None:
        drawing, base = self._drawing, y + _ROW / 2 + 4
        drawing.text(_NAMES - 10, base, clip(run.optimizer.spec, _NAMES - 16), anchor="end")
        if run.breakdown is None:
            words = {"oom": "out of memory", "failed": "failed"}.get(run.status, "no breakdown")
            drawing.text(_NAMES + 6, base, words, "muted onpaper")
            return
        x = self._x(0)
        for name in self._categories:
            size = run.breakdown.by_category.get(name, 0)
            width = self._x(size) - self._x(0)
            if width >= 0.05:
                tip = f"{category_title(name)}: {format_size(size)}"
                look = f"fill {COLOURS.get(name, 'grey')} cut"
                drawing.rectangle(x, y + (_ROW - _BAR) / 2, width, _BAR, look, tip)
            x += width
        reserved = run.peak.reserved_bytes if run.peak is not None else None
        if reserved is not None:
            drawing.line(self._x(reserved), y + 3, self._x(reserved), y + _ROW - 3, "thin")

    def _totals(self, run: Run, y: float) -> None:
        if run.breakdown is None:
            return
        reserved = run.peak.reserved_bytes if run.peak is not None else None
        x, base = self._x(_top(run)) + 6, y + _ROW / 2 + 4
        words = format_size(run.breakdown.total_bytes)
        self._drawing.text(x, base, words, "onpaper strong")
        if reserved is not None:
            self._drawing.text(x + text_width(words) + 12, base, f"{format_size(reserved)} reserved", "onpaper muted")

    def _limit(self, top: float, bottom: float) -> None:
        words = f"capacity {format_size(self._capacity)}"
        if self._near:
            x = self._x(self._capacity)
            self._drawing.line(x, top + 8, x, bottom, "limit")
            self._drawing.text(min(x, WIDTH - 12 - text_width(words) / 2), top + 4, words, "muted", "middle")
        else:
            self._drawing.text(WIDTH - 12, top + 4, f"{words} →", "muted", "end")
        if self._right > _NAMES + _TOTALS:
            self._drawing.line(13, top - 6, 13, top + 8, "thin")
            self._drawing.text(20, top + 4, "reserved", "muted")


def _top(run: Run) -> int:
    reserved = run.peak.reserved_bytes if run.peak is not None else None
    return max(run.breakdown.total_bytes if run.breakdown is not None else 0, reserved or 0)


def _words(run: Run) -> str:
    if run.breakdown is None:
        return f"{run.optimizer.spec}: {'out of memory' if run.status == 'oom' else run.status}."
    held = run.breakdown.by_category
    most = max(held, key=lambda name: held[name])
    share = format_share(held[most] / run.breakdown.total_bytes if run.breakdown.total_bytes else 0.0)
    return (
        f"{run.optimizer.spec} {format_size(run.breakdown.total_bytes)}, most of it {category_title(most)} ({share})."
    )
