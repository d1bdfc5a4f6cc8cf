"""The largest value of a knob within a capacity, from the peaks at a few values.

Within one phase the peak of a training step is close to linear in the batch size and in the number of layers; the
peak over phases is the largest of these lines, so each phase is extrapolated by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memprof.results import PhasePeak


@dataclass(frozen=True)
class Point:
    """The peak of each phase, in bytes, at one value of the knob, and the model's parameters there."""

    value: int
    phases: Mapping[str, int]
    parameters: int

    @property
    def peak_bytes(self) -> int:
        """The peak over all phases."""
        return max(self.phases.values())


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
    """Straight lines through the phases of two points."""

    phases: Mapping[str, Line]
    parameters: Line

    @classmethod
    def through(cls, first: Point, second: Point) -> Extrapolation:
        """Return the lines through two points of different values."""
        lines = {
            phase: Line.through(first.value, peak, second.value, second.phases[phase])
            for phase, peak in first.phases.items()
            if phase in second.phases
        }
        return cls(lines, Line.through(first.value, first.parameters, second.value, second.parameters))

    def peak(self, value: int) -> tuple[int, str]:
        """Return the peak at a value, and the phase that sets it."""
        return max((line.at(value), phase) for phase, line in self.phases.items())

    def largest(self, capacity_bytes: int) -> int | None:
        """Return the largest value whose peak is at most the capacity, 0 if none is; None if the peak never grows."""
        bounds = [
            int((capacity_bytes - line.intercept) // line.slope)
            for line in self.phases.values()
            if line.slope > 0
        ]
        return max(0, min(bounds)) if bounds else None


def point_of(value: int, phases: Mapping[str, PhasePeak], parameters: int) -> Point:
    """Return the point that a trial measured; on a GPU what counts is what the allocator reserved."""
    peaks = {
        name: peak.allocated_bytes if peak.reserved_bytes is None else peak.reserved_bytes
        for name, peak in phases.items()
    }
    return Point(value, peaks, parameters)


def furthest_apart(points: Sequence[Point]) -> tuple[Point, Point]:
    """Return the two points that an extrapolation upwards should rest on: the smallest and the largest value."""
    ordered = sorted(points, key=lambda point: point.value)
    return ordered[0], ordered[-1]
