"""The largest batch and the largest model of one optimizer: a few trials, an extrapolation, and a proof."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from memprof.errors import ExitCode, MemprofError
from memprof.fitting.lines import Extrapolation, Point, furthest_apart
from memprof.plan import Outcome, Trial
from memprof.progress import Purpose
from memprof.results import FitAnswer, FitPoint

# The first step creates the optimizer's state, the second has it from its beginning.
FIT_STEPS = {"warmup": 0, "steps": 2}
# A proof trains one more, and the search for it gives up after so many trials.
CONFIRM_STEPS = {"warmup": 0, "steps": 3}
_MOST_TRIALS = 40

Proof = Literal["confirmed", "predicted"]
RunTrial = Callable[[Trial, Purpose, str], Outcome]


class FitSearch:
    """Finds the largest value of one knob whose peak stays within a capacity.

    Args:
        trial: the trial that was measured, at the value the user gave.
        measured: its outcome; out of memory is an answer too.
        knob: `batch_size`, or the workload's scale knob.
        value: the knob's value in `trial`.
        capacity_bytes: what the allocator may take.
        run_trial: runs a trial in a fresh process.
    """

    def __init__(
        self, trial: Trial, measured: Outcome, knob: str, value: int, capacity_bytes: int, run_trial: RunTrial
    ) -> None:
        self._trial = trial
        self._knob = knob
        self._capacity = capacity_bytes
        self._run_trial = run_trial
        self._first = value
        self._points: dict[int, Point | None] = {value: _point(value, measured)}

    def answer(self, proof: Proof | None) -> FitAnswer | None:
        """Return the largest value; None where the knob cannot be varied (too little was trained to extrapolate).

        Args:
            proof: how to call the answer once it and its successor have been tried; None to extrapolate only.
        """
        self._take_second_point()
        known = self._known()
        if not known and self._points.get(1, known) is None:
            return self._nothing_fits(proof or "confirmed")
        if len(known) < 2:
            return None
        extrapolation = Extrapolation.through(*furthest_apart(known))
        value = extrapolation.largest(self._capacity)
        if value is None and proof == "predicted":
            value = 2 * self._first  # what a GPU reserves comes in steps: level so far, it may rise yet
        if value is None and self._failing() is not None:  # level so far, yet it must rise
            value = self._fitting() if proof is None else 2 * self._fitting()
        if value is None:
            return self._as_answer(extrapolation, None, "extrapolated")
        if proof is None:
            return self._as_answer(extrapolation, value, "extrapolated")
        return self._prove(value, proof)

    def _known(self) -> list[Point]:
        return [point for point in self._points.values() if point is not None]

    def _take_second_point(self) -> None:
        """Train half the value, or twice where half cannot be built; halve on while out of memory."""
        value = self._first // 2
        while value >= 1 and len(self._known()) < 2:
            if not self._train(value, "fit"):
                break
            value //= 2
        if len(self._known()) == 1 and self._points[self._first] is not None:
            self._train(self._first * 2, "fit")

    def _train(self, value: int, purpose: Purpose) -> bool:
        """Train at a value and note its point; False where the workload refuses the value."""
        steps = FIT_STEPS if purpose == "fit" else CONFIRM_STEPS
        changes: dict[str, Any] = {
            "purpose": purpose,
            "recipe": self._trial.recipe.model_copy(update=steps),
            "limit_bytes": self._capacity if purpose == "confirm" else None,
        }
        if self._knob == "batch_size":
            changes["batch_size"] = value
        else:
            knobs = {**self._trial.workload.knobs, self._knob: value}
            changes["workload"] = self._trial.workload.model_copy(update={"knobs": knobs})
        label = f"{self._trial.optimizer.text}  {self._knob}={value}"
        try:
            outcome = self._run_trial(self._trial.model_copy(update=changes), purpose, label)
        except MemprofError as error:
            if error.exit_code != ExitCode.USAGE:
                raise
            return False
        self._points[value] = _point(value, outcome)
        return outcome.run.status != "failed"

    def _prove(self, value: int, proof: Proof) -> FitAnswer:
        """Try the extrapolated value and its neighbours until one fits and its successor does not.

        The strides double and the rest is bisected, so a good first guess costs two trials and a bad one few more.
        """
        fitting, failing = self._fitting(), self._failing()
        if failing is not None:
            value = min(value, failing - 1)
        stride = 1
        for _ in range(_MOST_TRIALS):
            if failing == fitting + 1:
                break
            if not fitting < value or (failing is not None and not value < failing):
                value = fitting + stride if failing is None else (fitting + failing) // 2
            if not self._train(value, "confirm"):
                break
            if self._fits(value):
                fitting, value = value, value + stride
            else:
                failing, value = value, value - stride
            stride *= 2
        lines = Extrapolation.through(*furthest_apart(self._known()))
        return self._as_answer(lines, fitting, proof if failing == fitting + 1 else "extrapolated")

    def _fitting(self) -> int:
        return max((value for value in self._points if self._fits(value)), default=0)

    def _failing(self) -> int | None:
        return min((value for value in self._points if not self._fits(value)), default=None)

    def _fits(self, value: int) -> bool:
        point = self._points.get(value)
        return point is not None and point.peak_bytes <= self._capacity

    def _nothing_fits(self, proof: Proof) -> FitAnswer:
        return FitAnswer(knob=self._knob, value=0, next_value=1, method=proof, points=self._as_points())

    def _as_points(self) -> list[FitPoint]:
        return [FitPoint(value=v, peak_bytes=p.peak_bytes if p else None) for v, p in sorted(self._points.items())]

    def _as_answer(self, lines: Extrapolation, value: int | None, method: Literal["extrapolated"] | Proof) -> FitAnswer:
        if value is None:
            return FitAnswer(knob=self._knob, value=None, method=method, points=self._as_points())
        peak, phase = lines.peak(value)
        parameters = lines.parameters.at(value) if self._knob != "batch_size" else None
        return FitAnswer(
            knob=self._knob,
            value=value,
            parameters=parameters,
            peak_bytes=self._peak(value, peak),
            next_value=value + 1,
            next_peak_bytes=self._peak(value + 1, lines.peak(value + 1)[0]),
            phase=phase,
            method=method,
            points=self._as_points(),
        )

    def _peak(self, value: int, extrapolated: int) -> int | None:
        """Return the measured peak of a value that was trained (None: out of memory), else the extrapolated one."""
        point = self._points.get(value)
        return (point.peak_bytes if point else None) if value in self._points else extrapolated


def _point(value: int, outcome: Outcome) -> Point | None:
    run = outcome.run
    if run.status != "ok" or run.parameters is None:
        return None
    return Point(value, outcome.levels, run.parameters.count)
