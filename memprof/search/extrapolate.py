"""Extrapolates the largest value of a knob within a capacity from the peaks at a few values.

A training step makes the same allocations in the same order at every batch size, and the size of each tensor is linear
in the batch size. The level of live bytes after each allocation is therefore linear as well, and the peak is the
largest of these lines. Where the steps at two values do not match allocation by allocation (for example because the
number of layers differs, or because a kernel takes other workspace), the peak of each phase is extrapolated instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """The memory levels that were measured at one value of the knob.

    Attributes:
        value: The value of the knob.
        levels: For each phase, the live bytes through a training step; the largest is the peak of the phase.
        parameters: The number of parameters of the model at this value.
    """

    value: int
    levels: Mapping[str, Sequence[int]]
    parameters: int

    @property
    def peak_bytes(self) -> int:
        """The peak over all phases, in bytes."""
        return max(max(levels) for levels in self.levels.values())

    @property
    def phase(self) -> str:
        """The phase that sets the peak; the first one if several phases reach it."""
        return max(self.levels, key=lambda phase: max(self.levels[phase]))


@dataclass(frozen=True)
class Line:
    """The straight line `intercept + slope * value`."""

    intercept: float
    slope: float

    @classmethod
    def through(cls, x0: int, y0: float, x1: int, y1: float) -> Line:
        """Return the line through two points whose x differs."""
        slope = (y1 - y0) / (x1 - x0)
        return cls(y0 - slope * x0, slope)

    def at(self, value: int) -> int:
        """Return the height of the line at a value, rounded to a whole number."""
        return round(self.intercept + self.slope * value)


@dataclass(frozen=True)
class Extrapolation:
    """Straight lines through two points.

    Attributes:
        phases: The lines of each phase: one line for each allocation, or a single one through the phase's peaks.
        parameters: The line of the number of parameters.
    """

    phases: Mapping[str, Sequence[Line]]
    parameters: Line

    @classmethod
    def through(cls, first: Point, second: Point) -> Extrapolation:
        """Return the lines through two points whose values differ."""
        phases = {
            phase: _lines(first.value, levels, second.value, second.levels[phase])
            for phase, levels in first.levels.items()
            if phase in second.levels
        }
        return cls(phases, Line.through(first.value, first.parameters, second.value, second.parameters))

    def peak(self, value: int) -> tuple[int, str]:
        """Return the peak at a value in bytes, and the phase that sets it (the first one if several reach it)."""
        peaks = [(max(line.at(value) for line in lines), phase) for phase, lines in self.phases.items()]
        return max(peaks, key=lambda peak: peak[0])

    def largest(self, capacity_bytes: int) -> int | None:
        """Return the largest value whose peak is at most the capacity.

        Args:
            capacity_bytes: The capacity, in bytes.

        Returns:
            The value; 0 if no value fits; None if the peak does not grow with the value, so that every value fits.
        """
        lines = [line for lines in self.phases.values() for line in lines]
        if any(line.slope <= 0 and line.at(1) > capacity_bytes for line in lines):
            return 0
        bounds = [(capacity_bytes - line.intercept) // line.slope for line in lines if line.slope > 0]
        return max(0, int(min(bounds))) if bounds else None


def _lines(x0: int, levels0: Sequence[int], x1: int, levels1: Sequence[int]) -> list[Line]:
    if len(levels0) != len(levels1):
        levels0, levels1 = [max(levels0)], [max(levels1)]
    return [Line.through(x0, y0, x1, y1) for y0, y1 in zip(levels0, levels1, strict=True)]


def furthest_apart(points: Sequence[Point]) -> tuple[Point, Point]:
    """Return the two points to extrapolate from: those with the smallest and the largest value."""
    ordered = sorted(points, key=lambda point: point.value)
    return ordered[0], ordered[-1]
