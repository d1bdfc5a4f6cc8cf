"""The search for the largest value, on devices that are formulas: right, and with few trials."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memprof.documents.comparison import FitAnswer, FitPoint, OptimizerInfo, Parameters, Peak, Run
from memprof.documents.jobs import Outcome, Trial
from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.vary import Vary
from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import UsageError
from memprof.search.bracket import Bracket
from memprof.search.by_training import SearchSpace, TrainedSearch

TRIAL = Trial(
    workload=WorkloadSpec(model="mlp"), optimizer=parse_optimizer("adam"), device="cpu", batch_size=8, recipe=Recipe()
)
MIB = 1 << 20


def run_search(
    vary: Vary, fits: Callable[[int], bool | None], guess: Callable[[int, int], int], *firsts: int
) -> Bracket:
    search = Bracket(vary, firsts)
    for _ in range(300):
        value = search.next_value(guess)
        if value is None:
            return search
        assert vary.low <= value <= vary.high
        assert (value - vary.low) % vary.step == 0
        assert value not in search.tried
        assert value not in search.refused
        search.note(value, fits(value))
    raise AssertionError("the search does not end")


@given(
    low=st.integers(1, 20),
    count=st.integers(1, 200),
    step=st.integers(1, 7),
    boundary=st.integers(0, 400),
    error=st.integers(-50, 50),
    divisor=st.sampled_from([1, 2, 3, 12]),
    first=st.integers(1, 200),
)
def test_answer_is_what_trying_every_value_finds(low, count, step, boundary, error, divisor, first) -> None:
    """However wrong the guess is, and whatever values are refused."""
    vary = Vary(knob="d_model", low=low, high=low + count, step=step)

    def fits(value: int) -> bool | None:
        return None if value % divisor else value <= boundary

    search = run_search(vary, fits, lambda below, highest: boundary + error, first)
    taken = [value for value in range(low, low + count + 1, step) if value % divisor == 0]
    assert search.fitting == max((value for value in taken if value <= boundary), default=None)
    if search.fitting is None:
        assert search.failing == min(taken, default=None)
    else:
        assert search.failing == min((value for value in taken if value > search.fitting), default=None)


def test_right_guess_takes_two_trials_after_the_first():
    search = run_search(Vary(), lambda value: value <= 61, lambda low, high: 61, 8)
    assert search.tried == [8, 61, 62]


def test_guess_that_is_always_wrong_is_given_up():
    search = run_search(Vary(), lambda value: value <= 5000, lambda low, high: low, 8)
    assert search.fitting == 5000
    assert len(search.tried) < 40


def test_end_of_the_range_is_not_the_boundary():
    search = run_search(Vary(high=100), lambda value: True, lambda low, high: high, 8)
    assert (search.fitting, search.failing) == (100, None)


def test_memory_that_falls_with_the_knob_still_has_an_end():
    search = run_search(Vary(high=64), lambda value: value >= 8, lambda low, high: high, 4, 16)
    assert (search.fitting, search.failing) == (64, None)
    assert 4 in search.tried


def outcome_of(peak_bytes: int, capacity: int | None) -> Outcome:
    status = "oom" if capacity is not None and peak_bytes > capacity else "ok"
    run = Run(
        optimizer=OptimizerInfo(spec="adam", name="adam"),
        device="cpu",
        status=status,
        parameters=Parameters(count=1, trainable=1, bytes=4),
        peak=Peak(allocated_bytes=peak_bytes, phase="backward", step=2),
    )
    return Outcome(run=run, levels={"backward": [peak_bytes]})


class Machine:
    """Runs trials by a formula and counts them."""

    def __init__(self, peak: Callable[[int], int], capacity: int) -> None:
        self.peak = peak
        self.capacity = capacity
        self.trained: list[int] = []
        self.limits: list[int | None] = []

    def search(self, value: int = 8) -> TrainedSearch:
        measured = outcome_of(self.peak(value), self.capacity)
        return TrainedSearch(SearchSpace(TRIAL, Vary(), self.capacity), self.run, {value: measured})

    def check(self, *predicted: int) -> TrainedSearch:
        """Begin at the last of the predicted values, with the peaks that were predicted a tenth too low."""
        points = [FitPoint(value=value, peak_bytes=self.peak(value) * 9 // 10) for value in predicted]
        forecast = FitAnswer(knob="batch_size", value=predicted[-1], method="predicted", points=points)
        return TrainedSearch(SearchSpace(TRIAL, Vary(), self.capacity), self.run, forecast=forecast)

    def run(self, trial: Trial, purpose: str, label: str) -> Outcome:
        self.trained.append(trial.batch_size)
        self.limits.append(trial.limit_bytes)
        return outcome_of(self.peak(trial.batch_size), trial.limit_bytes)


def linear(batch: int) -> int:
    return 100 * MIB + 7 * MIB * batch


def test_linear_peak_takes_one_more_point_and_two_proofs():
    machine = Machine(linear, 1000 * MIB)
    answer = machine.search().confirm()
    assert (answer.value, answer.next_value, answer.method) == (128, 129, "confirmed")
    assert machine.trained == [4, 128, 129]
    assert machine.limits == [None, 1000 * MIB, 1000 * MIB]
    assert machine.search().extrapolate().value == 128


def test_right_prediction_takes_two_trainings_under_the_cap():
    machine = Machine(linear, 1000 * MIB)
    answer = machine.check(8, 4, 128).confirm()
    assert (answer.value, answer.next_value, answer.method, answer.peak_bytes) == (128, 129, "confirmed", 996 * MIB)
    assert machine.trained == [128, 129]
    assert machine.limits == [1000 * MIB] * 2


@pytest.mark.parametrize(("predicted", "most"), [(100, 5), (127, 3), (129, 2), (131, 4), (180, 14)])
def test_wrong_prediction_gives_way_to_what_was_trained(predicted: int, most: int):
    machine = Machine(linear, 1000 * MIB)
    answer = machine.check(8, 4, predicted).confirm()
    assert (answer.value, answer.next_value, answer.method) == (128, 129, "confirmed")
    assert len(machine.trained) <= most


def test_prediction_that_nothing_fits_is_tried_too():
    machine = Machine(lambda batch: linear(batch) + 1000 * MIB, 1000 * MIB)
    forecast = FitAnswer(knob="batch_size", value=0, method="predicted", points=[])
    answer = TrainedSearch(SearchSpace(TRIAL, Vary(), machine.capacity), machine.run, forecast=forecast).confirm()
    assert (answer.value, answer.next_value, answer.method) == (0, 1, "confirmed")
    assert machine.trained == [1]


def test_training_that_fails_ends_the_search_with_what_is_known():
    class MachineWithFailure(Machine):
        def run(self, trial: Trial, purpose: str, label: str) -> Outcome:
            outcome = super().run(trial, purpose, label)
            if trial.batch_size < 129:
                return outcome
            run = outcome.run.model_copy(update={"status": "failed", "reason": "the loss is nan"})
            return Outcome(run=run)

    answer = MachineWithFailure(linear, 1000 * MIB).check(8, 4, 128).confirm()
    assert (answer.value, answer.method) == (128, "extrapolated")
    assert answer.notes == ["batch_size=129 could not be trained: the loss is nan"]


@given(
    base=st.integers(0, 300),
    slope=st.integers(1, 40),
    bend=st.integers(0, 5),
    quantum=st.sampled_from([1, 2, 20]),
    capacity=st.integers(1, 2000),
    first=st.integers(1, 64),
)
def test_proven_answer_is_what_trying_every_value_finds(base, slope, bend, quantum, capacity, first) -> None:
    def peak(batch: int) -> int:
        exact = base + slope * batch + bend * batch * batch // 8
        return -(-exact // quantum) * quantum * MIB

    machine = Machine(peak, capacity * MIB)
    answer = machine.search(first).confirm()
    largest = max((v for v in range(1, 2100) if peak(v) <= capacity * MIB), default=0)
    if answer is None:  # fewer than two values could be trained
        assert largest < 2
    elif answer.value is None:  # the two values that were trained needed the same
        assert answer.method == "extrapolated"
        assert len({point.peak_bytes for point in answer.points}) == 1
    else:
        assert (answer.value, answer.method) == (largest, "confirmed")


def test_knob_that_cannot_be_halved_or_doubled_has_no_answer():
    def refuse(trial: Trial, purpose: str, label: str) -> Outcome:
        raise UsageError("n_heads must divide d_model")

    space = SearchSpace(TRIAL, Vary(knob="d_model"), 100 * MIB)
    assert TrainedSearch(space, refuse, {96: outcome_of(10 * MIB, None)}).confirm() is None
