"""The figures of a report, each an SVG file: who holds the peak, memory through a step, peak against batch size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from memprof.documents.comparison import Comparison
from memprof.report.figures.batch import draw_batches
from memprof.report.figures.peak import draw_peaks
from memprof.report.figures.timeline import draw_steps


@dataclass(frozen=True)
class Figure:
    """A figure as a file.

    Attributes:
        name: tells it from the other figures of its report; it becomes a part of the file's name.
        text: what it says, for those who do not see it.
        svg: the file's text.
    """

    name: str
    text: str
    svg: str


_DRAWERS = {"peak": draw_peaks, "timeline": draw_steps, "batch": draw_batches}
NAMES = tuple(_DRAWERS)


def draw_figures(comparison: Comparison) -> Iterator[Figure]:
    """Yield the figures that a comparison has the numbers for; the same comparison gives the same bytes."""
    for name, draw in _DRAWERS.items():
        drawn = draw(comparison)
        if drawn is not None:
            yield Figure(name, *drawn)
