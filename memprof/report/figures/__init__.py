"""The figures of a report as SVG files: the breakdown at the peak, memory in a step, and peak against batch size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from memprof.documents.comparison import Comparison
from memprof.report.figures.batch import draw_batches
from memprof.report.figures.peak import draw_peaks
from memprof.report.figures.timeline import draw_steps


@dataclass(frozen=True)
class SvgFigure:
    """A figure that can be written to a file.

    Attributes:
        name: The name of the figure, which is unique in its report and becomes a part of the file name.
        text: A description of the figure in words, for readers who cannot see it.
        svg: The content of the SVG file.
    """

    name: str
    text: str
    svg: str


_DRAWERS = {"peak": draw_peaks, "timeline": draw_steps, "batch": draw_batches}
NAMES = tuple(_DRAWERS)


def draw_figures(comparison: Comparison) -> Iterator[SvgFigure]:
    """Yield the figures that a comparison has numbers for. The same comparison always gives the same bytes."""
    for name, draw in _DRAWERS.items():
        drawn = draw(comparison)
        if drawn is not None:
            yield SvgFigure(name, *drawn)
