"""Search by training: starts from a prediction or from trained values and trains until the answer is confirmed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from memprof.documents.comparison import FitAnswer, FitPoint
from memprof.documents.jobs import Outcome, Purpose, Trial
from memprof.documents.vary import BATCH, Vary
from memprof.errors import ExitCode, MemprofError
from memprof.search.bracket import UNEVEN, Bracket
from memprof.search.extrapolate import Extrapolation, Point, furthest_apart
from memprof.training.micro_batches import recipe_at, step_samples

# Two steps are enough: the first step creates the optimizer's state, and the second holds it from its beginning.
FIT_STEPS = {"warmup": 0, "steps": 2}
# A trial that confirms an answer trains one step more.
CONFIRM_STEPS = {"warmup": 0, "steps": 3}


@dataclass(frozen=True)
class SearchSpace:
    """The trials that one search may run, and the memory that they must fit into.

    Attributes:
        trial: The trial whose knob is varied: its workload, optimizer, device and recipe.
        vary: The knob and the values that may be tried.
        capacity_bytes: The memory that the allocator may take, in bytes.
    """

    trial: Trial
    vary: Vary
    capacity_bytes: int

    def at(self, value: int, purpose: Purpose) -> Trial:
        """Return the trial at one value of the knob.

        Args:
            value: The value of the knob.
            purpose: `confirm` trains with the capacity as the memory limit; `fit` trains without a limit.
        """
        steps = FIT_STEPS if purpose == "fit" else CONFIRM_STEPS
        changes: dict[str, Any] = {
            "purpose": purpose,
            "recipe": recipe_at(self.trial.recipe, self.vary, value).model_copy(update=steps),
            "limit_bytes": self.capacity_bytes if purpose == "confirm" else None,
        }
        if self.vary.knob == BATCH:
            return self.trial.model_copy(update={**changes, "batch_size": value})
        knobs = {**self.trial.workload.knobs, self.vary.knob: value}
        workload = self.trial.workload.model_copy(update={"knobs": knobs})
        return self.trial.model_copy(update={**changes, "workload": workload})


# A search that has to confirm its answer gives up after this many trials.
_MOST_TRIALS = 40

RunTrial = Callable[[Trial, Purpose, str], Outcome]


class TrainedSearch:
    """Finds the largest value of one knob whose peak stays within a capacity, by training.

    Args:
        space: The trials that may be run, and the memory that they must fit into.
        run_trial: Runs a trial in a fresh process.
        known: The outcomes of earlier trials by value, including those that ran out of memory.
        forecast: The predicted answer; None if the search can only use trained values.
        refused: The values that the workload is known not to take.
    """

    def __init__(
        self,
        space: SearchSpace,
        run_trial: RunTrial,
        known: Mapping[int, Outcome] | None = None,
        forecast: FitAnswer | None = None,
        refused: tuple[int, ...] = (),
    ) -> None:
        self._space = space
        self._run_trial = run_trial
        self._forecast = forecast
        self._points: dict[int, Point | None] = {}
        self._parameters: dict[int, int] = {}
        self._failure: str | None = None
        firsts = [forecast.value or space.vary.low] if forecast is not None and forecast.value is not None else []
        self._bracket = Bracket(space.vary, firsts)
        for value in refused:
            self._bracket.note(value, None)
        for value, outcome in (known or {}).items():
            self._note(value, outcome)

    def extrapolate(self) -> FitAnswer | None:
        """Extrapolate the largest value along straight lines through two trained values.

        Returns:
            The extrapolated answer; None if no two values can be trained.
        """
        known = self._take_second_point()
        if not known and self._points.get(1, known) is None:
            return self._nothing_fits("confirmed")
        if len(known) < 2:
            return None
        lines = Extrapolation.through(*furthest_apart(known))
        value = lines.largest(self._space.capacity_bytes)
        if value is None and self._bracket.failing is not None:  # the lines are level, yet a larger value failed
            value = self._bracket.fitting or 0
        return self._extrapolated(lines, value)

    def confirm(self) -> FitAnswer | None:
        """Find the largest value that trains within the capacity while the next value does not fit.

        Returns:
            The confirmed answer. If the search had to end early, the answer is the largest value that was trained,
            with a note. None if nothing was predicted and no two values can be trained.
        """
        if self._forecast is None:
            rough = self.extrapolate()
            if rough is None or rough.value is None or not self._known():
                return rough
        for _ in range(_MOST_TRIALS):
            value = self._bracket.next_value(self._guess)
            if value is None:
                return self._confirmed()
            self._train(value, "confirm")
            if self._failure is not None:
                break
        return self._unconfirmed()

    def _known(self) -> list[Point]:
        return [point for point in self._points.values() if point is not None]

    def _take_second_point(self) -> list[Point]:
        """Train half of the largest trained value, halving again after each out of memory; return the points.

        Where half the value cannot be trained, train twice the value instead.
        """
        first = max(self._points)
        value = first // 2
        while value >= 1 and len(self._known()) < 2:
            self._train(value, "fit")
            if value in self._bracket.refused or self._failure is not None:
                break
            value //= 2
        if len(self._known()) == 1 and self._points[first] is not None:
            self._train(first * 2, "fit")
        return self._known()

    def _train(self, value: int, purpose: Purpose) -> None:
        """Train at a value, and record its peak or that the workload refuses the value."""
        trial = self._space.at(value, purpose)
        label = f"{trial.optimizer.text}  {self._space.vary.knob}={value}"
        try:
            outcome = self._run_trial(trial, purpose, label)
        except MemprofError as error:
            if error.exit_code != ExitCode.USAGE:
                raise
            self._bracket.note(value, None)
            return
        if outcome.run.status == "failed":
            self._failure = f"{self._space.vary.knob}={value} could not be trained: {outcome.run.reason}"
            return
        self._note(value, outcome)

    def _note(self, value: int, outcome: Outcome) -> None:
        run = outcome.run
        point = None
        if run.status == "ok" and run.parameters is not None:
            point = Point(value, outcome.levels, run.parameters.count)
            self._parameters[value] = run.parameters.count
        self._points[value] = point
        self._bracket.note(value, point is not None and point.peak_bytes <= self._space.capacity_bytes)

    def _guess(self, low: int, high: int) -> int:
        """Return the largest value that should fit, from two trained values or from one and the predicted slope."""
        known, capacity = self._known(), self._space.capacity_bytes
        if len(known) > 1:
            value = Extrapolation.through(*furthest_apart(known)).largest(capacity)
            return min(high, 2 * max(low, 1) if value is None else value)
        slope, failing = self._predicted_slope(), self._bracket.failing
        if known and slope > 0:
            return known[0].value + int((capacity - known[0].peak_bytes) // slope)
        if failing is None:
            return min(high, 2 * max(low, 1))
        return failing - (1 << (len(self._points) - 1))  # step down by 1, 2, 4: predictions are rarely far off

    def _predicted_slope(self) -> float:
        points = {p.value: p.peak_bytes for p in (self._forecast.points if self._forecast else []) if p.peak_bytes}
        if len(points) < 2:
            return 0.0
        first, last = min(points), max(points)
        return (points[last] - points[first]) / (last - first)

    def _nothing_fits(self, method: str) -> FitAnswer:
        smallest = min(self._points)
        point = self._points[smallest]
        return FitAnswer.model_validate(
            {
                **self._common(method),
                "value": 0,
                "next_value": smallest,
                "next_peak_bytes": point.peak_bytes if point else self._predicted_peak(smallest),
                "phase": point.phase if point else None,
            }
        )

    def _confirmed(self) -> FitAnswer:
        value, following = self._bracket.fitting, self._bracket.failing
        if value is None:
            return self._nothing_fits("confirmed")
        answer = self._answer("confirmed", value, following)
        if following is not None:
            return answer
        note = f"Every value up to {self._space.vary.knob}={value}, the end of the range, fits."
        return answer.model_copy(update={"notes": [*answer.notes, note]})

    def _unconfirmed(self) -> FitAnswer:
        """Return the largest value that was trained, after the search ended without trying the next value."""
        value = self._bracket.fitting
        answer = (
            self._answer("extrapolated", value, self._bracket.failing) if value else self._nothing_fits("confirmed")
        )
        return answer.model_copy(update={"notes": [self._failure or f"The search ended after {_MOST_TRIALS} trials."]})

    def _answer(self, method: str, value: int, following: int | None) -> FitAnswer:
        point = self._points[value]
        after = self._points.get(following) if following is not None else None
        binding = after or point
        assert point is not None
        assert binding is not None
        needed = after.peak_bytes if after is not None else self._predicted_peak(following)
        return FitAnswer.model_validate(
            {
                **self._common(method),
                **self._batch(value),
                "value": value,
                "parameters": self._parameters[value] if self._space.vary.knob != BATCH else None,
                "peak_bytes": point.peak_bytes,
                "next_value": following,
                "next_peak_bytes": needed,
                "phase": binding.phase,
            }
        )

    def _batch(self, value: int) -> dict[str, int]:
        if not value or self._space.vary.knob != BATCH:
            return {}
        micro_batches, samples = step_samples(self._space.trial.recipe, self._space.vary, value)
        return {"accumulate": micro_batches, "global_batch": samples}

    def _predicted_peak(self, value: int | None) -> int | None:
        """Return the predicted peak of a value that ran out of memory, whose peak was therefore not measured."""
        points = self._forecast.points if self._forecast is not None else []
        return next((point.peak_bytes for point in points if point.value == value), None)

    def _common(self, method: str) -> dict[str, Any]:
        points = [FitPoint(value=v, peak_bytes=p.peak_bytes if p else None) for v, p in sorted(self._points.items())]
        predicted = self._forecast.notes if self._forecast is not None else []
        notes = [note for note in predicted if "refuses" in note or note == UNEVEN]
        return {"knob": self._space.vary.knob, "method": method, "points": points, "notes": notes}

    def _extrapolated(self, lines: Extrapolation, value: int | None) -> FitAnswer:
        common = self._common("extrapolated")
        if value is None:
            return FitAnswer.model_validate({**common, "value": None})
        peak, phase = lines.peak(value)
        return FitAnswer.model_validate(
            {
                **common,
                **self._batch(value),
                "value": value,
                "parameters": lines.parameters.at(value) if self._space.vary.knob != BATCH else None,
                "peak_bytes": self._peak(value, peak),
                "next_value": value + 1,
                "next_peak_bytes": self._peak(value + 1, lines.peak(value + 1)[0]),
                "phase": phase,
            }
        )

    def _peak(self, value: int, extrapolated: int) -> int | None:
        """Return the measured peak of a trained value (None if out of memory), or else the extrapolated one."""
        point = self._points.get(value)
        return (point.peak_bytes if point else None) if value in self._points else extrapolated
