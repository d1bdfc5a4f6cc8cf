"""Which value to try next: a bracket that closes on the largest value that fits.

Whoever tries the values says for each whether it fits, or that it is refused (a width that the heads do not divide).
A guess says where the boundary should be; it saves trials and is never believed: the search ends when a value was seen
to fit and the next one that is not refused was seen not to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from memprof.documents.vary import Vary

UNEVEN = "Batches of one size differ in length, and a longer one needs more: give the workload a `longest_batch`."
UNTRAINED = "The fit ended before this was trained."


# Refused values in a row after which there are taken to be no more.
_LONGEST_GAP = 1024
# Guesses that may be wrong before the search halves and doubles by itself.
_GUESSES = 5

Guess = Callable[[int, int], int]


class Search:
    """The bracket of one optimizer on one device.

    Args:
        vary: the values that may be tried.
        firsts: values to try before any guess; those off the grid are left out.

    Attributes:
        fitting: the largest value seen to fit, None if none was.
        failing: the smallest value above `fitting` seen not to fit, None if none was.
        refused: values that the workload does not take.
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
        """Take down that a value fits, does not, or is refused (None)."""
        if fits is None:
            self.refused.add(value)
        else:
            self._fits[value] = fits

    @property
    def fitting(self) -> int | None:
        """The largest value seen to fit."""
        return max((value for value, fits in self._fits.items() if fits), default=None)

    @property
    def failing(self) -> int | None:
        """The smallest value above the largest fitting one that was seen not to fit."""
        floor = self.fitting or 0
        return min((value for value, fits in self._fits.items() if not fits and value > floor), default=None)

    @property
    def tried(self) -> list[int]:
        """The values that were tried, and not refused."""
        return sorted(self._fits)

    def next_value(self, guess: Guess) -> int | None:
        """Return the value to try next; None when the answer stands.

        Args:
            guess: given the largest value that fits (or one below the range) and the largest that still may, returns
                the largest that is thought to fit.
        """
        for value in self._firsts:
            if value not in self._fits and value not in self.refused:
                return value
        lowest = self._lowest_open()
        return None if lowest is None else self._choose(lowest, guess)

    def _lowest_open(self) -> int | None:
        """Return the smallest value that may be the answer or its successor untried, or None."""
        fitting = self.fitting
        start = self._vary.low if fitting is None else fitting + 1
        lowest = next(self._upwards(start), None)
        return None if lowest in self._fits else lowest

    def _upwards(self, start: int) -> Iterator[int]:
        """Yield the values from `start` on that are not known to be refused, until too many in a row are."""
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
        """How far to go beyond a guess that says that the boundary is here: farther when it was wrong again.

        Upwards once more by one: the next guess has a trace nearer to the boundary to rest on.
        """
        return 1 << max(0, self._edges - (1 if self._edge > 0 else 2))

    def _nearest(self, wanted: int, lowest: int, highest: int) -> int:
        """Return the value not refused that is next to the wanted one, looking downwards first."""
        wanted = min(max(wanted, lowest), highest)
        for value in reversed(self._vary.between(lowest, wanted)):
            if value not in self.refused:
                return value
        return lowest
