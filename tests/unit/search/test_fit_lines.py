from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memprof.search.extrapolate import Extrapolation, Point, furthest_apart


def point(value: int, **levels: list[int]) -> Point:
    return Point(value, levels, parameters=1000 * value)


def test_largest_value_is_bounded_by_the_phase_that_rises_fastest():
    lines = Extrapolation.through(
        point(1, forward=[100, 110], optimizer=[500]), point(2, forward=[100, 120], optimizer=[500])
    )
    assert lines.largest(1000) == 90  # 100 + 10 * 90
    assert lines.peak(90) == (1000, "forward")
    assert lines.peak(1) == (500, "optimizer")
    assert lines.parameters.at(90) == 90_000


def test_levels_of_one_phase_cross():
    """The end of the backward pass sets its peak at small batches, its beginning at large ones."""
    lines = Extrapolation.through(point(1, backward=[30, 100]), point(2, backward=[60, 101]))
    assert lines.peak(10) == (300, "backward")
    assert lines.largest(300) == 10


def test_steps_that_do_not_match_are_extrapolated_by_their_peaks():
    lines = Extrapolation.through(point(6, backward=[60, 100]), point(12, backward=[10, 20, 160]))
    assert lines.peak(18) == (220, "backward")


def test_peak_that_never_grows_has_no_largest_value():
    assert Extrapolation.through(point(1, step=[5]), point(2, step=[5])).largest(100) is None


def test_capacity_below_everything_fits_nothing():
    assert Extrapolation.through(point(1, step=[50]), point(2, step=[60])).largest(10) == 0


def test_points_to_rest_on_are_the_outermost():
    points = [point(4, a=[1]), point(1, a=[1]), point(2, a=[1])]
    assert [p.value for p in furthest_apart(points)] == [1, 4]


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**4)), min_size=1, max_size=8),
    st.integers(0, 10**8),
)
def test_largest_agrees_with_trying_every_value(lines: list[tuple[int, int]], capacity: int) -> None:
    """For peaks that really are the largest of lines, the answer is the one that a linear search finds."""

    def at(value: int) -> Point:
        return Point(value, {"step": [a + b * value for a, b in lines]}, 0)

    def peak(value: int) -> int:
        return max(a + b * value for a, b in lines)

    answer = Extrapolation.through(at(1), at(2)).largest(capacity)
    if max(b for _, b in lines) == 0 and peak(1) <= capacity:
        assert answer is None
    else:
        assert answer is not None
        assert answer == 0 or peak(answer) <= capacity
        assert capacity < peak(answer + 1)
