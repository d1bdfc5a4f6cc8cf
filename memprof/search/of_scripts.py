"""Finds the largest value of a script's placeholder with which it fits, by running the script with one value at a time.

A script is its own program, so nothing of a run is shared with the next one: each value is a whole run, which stays
within the memory, runs out of it, or shows that the script does not accept the value.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from memprof.documents.comparison import FitAnswer, FitPoint, Run
from memprof.documents.jobs import Outcome
from memprof.documents.vary import Vary
from memprof.errors import ExitCode, MemprofError
from memprof.search.bracket import Bracket
from memprof.search.extrapolate import Extrapolation, Point

# A search ends after at most so many runs.
_MOST_RUNS = 40
# A guess is at most so many times the largest value that was run: if a larger guess is wrong, the script reads and
# copies data for nothing.
_FURTHEST = 16
# If the smallest value that fails and the largest that fits are no farther apart than this, a line that gives a value
# beyond them is assumed to be wrong by little.
_NARROW = 16

RunScript = Callable[[int], Outcome]


class ScriptSearch:
    """Searches for the largest value with one optimizer on one device.

    Args:
        vary: The placeholder and the values that may be tried.
        capacity_bytes: The memory that the script must stay within, in bytes.
        run_script: Runs the script with a value.
        timeout_s: The seconds that one run may take. A value that takes longer ends the search with an error.
        like: A finished search whose answer is probably similar, from which this search starts (with another optimizer,
            or predicted where this one measures); None to start anew.

    Attributes:
        outcomes: The outcome of each value that was run.
        failure: The run that shows that the script cannot run with this optimizer, or None.
    """

    def __init__(
        self,
        vary: Vary,
        capacity_bytes: int,
        run_script: RunScript,
        timeout_s: float,
        like: ScriptSearch | None = None,
    ) -> None:
        self._vary = vary
        self._capacity_bytes = capacity_bytes
        self._run_script = run_script
        self._timeout_s = timeout_s
        self._like = like if like is not None and like.outcomes else None
        self._bracket = Bracket(vary, [self._like.largest or vary.low] if self._like is not None else [])
        self._refused: tuple[int, str] | None = None
        self.outcomes: dict[int, Outcome] = {}
        self.failure: Run | None = None

    @property
    def largest(self) -> int | None:
        """The largest value that fitted in a run, or None."""
        return self._bracket.fitting

    def find(self) -> FitAnswer | None:
        """Return the largest value that fits; None if the script cannot run with this optimizer.

        Raises:
            UsageError: The script fails with the first value, or takes too long.
            MemprofError: Something failed that is not the fault of a single value.
        """
        for _ in range(_MOST_RUNS):
            value = self._bracket.next_value(self._guess)
            if value is None:
                return self._answer()
            self._try(value)
            if self.failure is not None:
                return None
        return self._answer(f"The search ended after {_MOST_RUNS} runs.")

    def _try(self, value: int) -> None:
        began = time.monotonic()
        try:
            outcome = self._run_script(value)
        except MemprofError as error:
            slow = time.monotonic() - began >= self._timeout_s
            if error.exit_code != ExitCode.USAGE or slow or not self.outcomes:
                raise MemprofError(f"{self._vary.knob}={value}: {error}", error.exit_code) from error
            self._refused = value, str(error)
            self._bracket.note(value, None)
            return
        if outcome.run.status == "failed":
            self.failure = outcome.run
            return
        self.outcomes[value] = outcome
        needed = needed_bytes(outcome.run)
        self._bracket.note(value, needed is not None and needed <= self._capacity_bytes)

    def _guess(self, low: int, high: int) -> int:
        """Estimate the largest value that fits, along straight lines through two runs, one for each phase.

        The lines are those of the bytes in use. The reserved bytes beyond these are taken from the largest run.
        """
        kin = list(self._kin())
        lines = next((lines for search in kin if (lines := search._lines()) is not None), None)
        if lines is None:
            return min(high, 2 * low)
        place, needed = next(found[-1] for search in kin if (found := search._needed()))
        value = lines.largest(self._capacity_bytes - max(0, needed - lines.peak(place)[0]))
        if value is None:
            return min(high, 2 * low)
        if self._bracket.failing is not None and value >= high > low + _NARROW:  # the lines are wrong
            return low + 3 * (high - low) // 4
        return max(low, min(high, value, _FURTHEST * max(self.outcomes, default=low)))

    def _kin(self) -> Iterator[ScriptSearch]:
        """Yield this search, and the earlier searches that it started from, latest first."""
        search: ScriptSearch | None = self
        while search is not None:
            yield search
            search = search._like

    def _needed(self) -> list[tuple[int, int]]:
        """Return the values whose run did not fail, in ascending order, with the bytes that each needs."""
        found = ((value, needed_bytes(outcome.run)) for value, outcome in sorted(self.outcomes.items()))
        return [(value, needed) for value, needed in found if needed is not None]

    def _lines(self) -> Extrapolation | None:
        """Return the lines through the largest value whose run did not fail and the value nearest to half of it."""
        values = [value for value, _ in self._needed()]
        if len(values) < 2:
            return None
        last = values.pop()
        other = min(values, key=lambda value: abs(2 * value - last))
        return Extrapolation.through(self._point(other), self._point(last))

    def _point(self, value: int) -> Point:
        run = self.outcomes[value].run
        levels = {phase: [peak.allocated_bytes] for phase, peak in run.phases.items()}
        return Point(value, levels, run.parameters.count if run.parameters is not None else 0)

    def _answer(self, unfinished: str | None = None) -> FitAnswer:
        value, following = self._bracket.fitting, self._bracket.failing
        measured = any(outcome.run.source == "measured" for outcome in self.outcomes.values())
        points = {one: needed_bytes(outcome.run) for one, outcome in sorted(self.outcomes.items())}
        return FitAnswer(
            knob=self._vary.knob,
            value=value or 0,
            peak_bytes=points[value] if value is not None else None,
            next_value=following,
            next_peak_bytes=points[following] if following is not None else None,
            phase=self._phase(following if following is not None else value),
            method="extrapolated" if unfinished else "confirmed" if measured else "predicted",
            points=[FitPoint(value=one, peak_bytes=needed) for one, needed in points.items()],
            notes=self._notes(value, following, unfinished),
        )

    def _phase(self, value: int | None) -> str | None:
        """Return the phase in which a value runs out of memory; otherwise the phase of its peak."""
        outcome = self.outcomes.get(value) if value is not None else None
        if outcome is None:
            return None
        return outcome.run.peak.phase if outcome.run.peak is not None else outcome.phase

    def _notes(self, value: int | None, following: int | None, unfinished: str | None) -> list[str]:
        knob, notes = self._vary.knob, [unfinished] if unfinished else []
        if value is not None and following is None and not unfinished:
            notes.append(f"Every value up to {knob}={value}, the end of the range, fits.")
        if self._refused is not None:
            refused, reason = self._refused
            notes.append(f"Values of {knob} that the script does not take were left out, such as {refused}: {reason}.")
        return notes


def needed_bytes(run: Run) -> int | None:
    """Return the bytes of the device that a run takes: those it reserves, or on a CPU those it allocates.

    Args:
        run: The run.

    Returns:
        The bytes; None if the run ran out of memory.
    """
    if run.status != "ok" or run.peak is None:
        return None
    return run.peak.reserved_bytes if run.peak.reserved_bytes is not None else run.peak.allocated_bytes
