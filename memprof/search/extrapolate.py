"""The largest value of a knob within a capacity, from the peaks at a few values.

A training step makes the same allocations in the same order at every batch size, and each tensor's size is linear in
the batch size; so is the level of live bytes after each allocation, and the peak is the largest of these lines. Where
the steps at two values do not match allocation by allocation (another number of layers, a kernel that takes other
scratch), the peak of each phase is extrapolated instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """What was trained at one value of the knob.

    Attributes:
        value: of the knob.
        levels: by phase, live bytes through a step; the last of each list is the phase's peak.
        parameters: of the model at this value.
    """

    value: int
    levels: Mapping[str, Sequence[int]]
    parameters: int

    @property
    def peak_bytes(self) -> int:
        """The peak over all phases."""
        return max(max(levels) for levels in self.levels.values())

    @property
    def phase(self) -> str:
        """The phase that sets it; of several the first."""
        return max(self.levels, key=lambda phase: max(self.levels[phase]))


@dataclass(frozen=True)
class Line:
    """`intercept + slope * value`."""

    intercept: float
    slope: float

    @classmethod
    def through(cls, x0: int, y0: float, x1: int, y1: float) -> Line:
        """Return the line through two points of different x."""
        slope = (y1 - y0) / (x1 - x0)
        return cls(y0 - slope * x0, slope)

    def at(self, value: int) -> int:
        """Return the line's height, rounded."""
        return round(self.intercept + self.slope * value)


@dataclass(frozen=True)
class Extrapolation:
    """Straight lines through two points: for each phase, one line or one for each allocation."""

    phases: Mapping[str, Sequence[Line]]
    parameters: Line

    @classmethod
    def through(cls, first: Point, second: Point) -> Extrapolation:
        """Return the lines through two points of different values."""
        phases = {
            phase: _lines(first.value, levels, second.value, second.levels[phase])
            for phase, levels in first.levels.items()
            if phase in second.levels
        }
        return cls(phases, Line.through(first.value, first.parameters, second.value, second.parameters))

    def peak(self, value: int) -> tuple[int, str]:
        """Return the peak at a value, and the phase that sets it; of several the first."""
        peaks = [(max(line.at(value) for line in lines), phase) for phase, lines in self.phases.items()]
        return max(peaks, key=lambda peak: peak[0])

    def largest(self, capacity_bytes: int) -> int | None:
        """Return the largest value whose peak is at most the capacity, 0 if none is; None if the peak never grows."""
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
    """Return the two points that an extrapolation upwards should rest on: the smallest and the largest value."""
    ordered = sorted(points, key=lambda point: point.value)
    return ordered[0], ordered[-1]
