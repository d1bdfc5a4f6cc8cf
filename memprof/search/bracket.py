"""The search bracket, which chooses the next value to try until it has closed on the largest value that fits.

The caller tries each value and records whether it fits, does not fit, or is refused by the workload (for example a
width that the number of heads does not divide). A guess suggests where the boundary lies. A guess only saves trials and
is never trusted: the search ends when one value has been seen to fit and the next value that is not refused has been
seen not to fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from memprof.documents.vary import Vary

UNEVEN = "Batches of one size differ in length, and a longer one needs more: give the workload a `longest_batch`."
UNTRAINED = "The fit ended before this was trained."


# After this many refused values in a row, the search assumes that the workload takes no larger value.
_LONGEST_GAP = 1024
# After this many wrong guesses, the search ignores guesses and bisects (or doubles while nothing has failed).
_GUESSES = 5

Guess = Callable[[int, int], int]


class Bracket:
    """The search bracket of one optimizer on one device.

    Args:
        vary: The knob and the values that may be tried.
        firsts: Values to try before any guess is asked for. Values that `vary` does not contain are ignored.

    Attributes:
        fitting: The largest value that was seen to fit, or None.
        failing: The smallest value above `fitting` that was seen not to fit, or None.
        refused: The values that the workload does not take.
    """

    def __init__(self, vary: Vary, firsts: Iterable[int]) -> None:
        self._vary = vary
        self._firsts = [value for value in dict.fromkeys(firsts) if value in vary]
        self._fits: dict[int, bool] = {}
        self.refused: set[int] = set()
        self._guesses = 0
        self._guessed: tuple[int | None, int | None] | None = None
        self._edge = self._edges = 0

    def note(self, value: int, fits: bool | None) -> None:
        """Record the outcome of a trial.

        Args:
            value: The value that was tried.
            fits: Whether the value fits; None if the workload refuses it.
        """
        if fits is None:
            self.refused.add(value)
        else:
            self._fits[value] = fits

    @property
    def fitting(self) -> int | None:
        """The largest value that was seen to fit, or None."""
        return max((value for value, fits in self._fits.items() if fits), default=None)

    @property
    def failing(self) -> int | None:
        """The smallest value above `fitting` that was seen not to fit, or None."""
        floor = self.fitting or 0
        return min((value for value, fits in self._fits.items() if not fits and value > floor), default=None)

    @property
    def tried(self) -> list[int]:
        """The values that were tried and not refused, in ascending order."""
        return sorted(self._fits)

    def next_value(self, guess: Guess) -> int | None:
        """Return the value to try next, or None when the search has ended.

        Args:
            guess: A function of two values: the largest value that fits (the smallest of the range while none does)
                and the largest value that may still fit. It returns its estimate of the largest value that fits.
        """
        for value in self._firsts:
            if value not in self._fits and value not in self.refused:
                return value
        lowest = self._lowest_open()
        return None if lowest is None else self._choose(lowest, guess)

    def _lowest_open(self) -> int | None:
        """Return the smallest value above `fitting` that is not refused; None if it was tried already or is missing."""
        fitting = self.fitting
        start = self._vary.low if fitting is None else fitting + 1
        lowest = next(self._upwards(start), None)
        return None if lowest in self._fits else lowest

    def _upwards(self, start: int) -> Iterator[int]:
        """Yield the values from `start` on that are not known to be refused; stop after too many refused in a row."""
        gap = 0
        for value in self._vary.between(start, self._vary.last):
            gap = gap + 1 if value in self.refused else 0
            if gap > _LONGEST_GAP:
                return
            if not gap:
                yield value

    def _choose(self, lowest: int, guess: Guess) -> int:
        fitting, failing = self.fitting, self.failing
        if fitting is None and failing is None:
            return lowest
        highest = self._vary.last if failing is None else self._vary.below(failing - 1)
        floor = fitting or self._vary.low
        fresh = self._guessed != (fitting, failing)  # a value that was refused costs no guess
        self._guessed, self._guesses = (fitting, failing), self._guesses + fresh
        if self._guesses <= _GUESSES:
            wanted = guess(floor, highest)
            edge = (wanted >= highest and failing is not None) - (wanted <= floor)
            if fresh:
                self._edge, self._edges = edge, self._edges + 1 if edge and edge == self._edge else 1
            if edge < 0:
                wanted = floor + self._stride * (lowest - floor)
            elif edge > 0:
                wanted = highest - (self._stride - 1) * self._vary.step
        elif failing is not None:
            wanted = (floor + failing) // 2
        else:
            wanted = 2 * floor + 1
        return self._nearest(self._vary.below(wanted), lowest, highest)

    @property
    def _stride(self) -> int:
        """The distance to step past the edge of the bracket when the guess says that the boundary is at that edge.

        The stride doubles each time the guess is wrong again at the same edge. Upwards it starts to grow one guess
        later than downwards, because the next upward guess can use a trace that lies closer to the boundary.
        """
        return 1 << max(0, self._edges - (1 if self._edge > 0 else 2))

    def _nearest(self, wanted: int, lowest: int, highest: int) -> int:
        """Return the largest value up to `wanted` that is not refused, or `lowest` if there is none."""
        wanted = min(max(wanted, lowest), highest)
        for value in reversed(self._vary.between(lowest, wanted)):
            if value not in self.refused:
                return value
        return lowest
