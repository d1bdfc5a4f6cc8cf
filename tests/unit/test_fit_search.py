"""The search for the largest value, on an allocator that is a formula: right, and with few trials."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memprof.errors import UsageError
from memprof.optimizers.spec import parse_optimizer
from memprof.plan import Outcome, Trial
from memprof.results import OptimizerInfo, Parameters, Peak, Run
from memprof.training.fitting import FitSearch
from memprof.training.recipe import Recipe
from memprof.workloads.spec import WorkloadSpec

TRIAL = Trial(
    workload=WorkloadSpec(model="mlp"), optimizer=parse_optimizer("adam"), device="cpu", batch_size=8, recipe=Recipe()
)
MIB = 1 << 20


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

    def __init__(self, peak, capacity: int) -> None:
        self.peak = peak
        self.capacity = capacity
        self.trained: list[int] = []

    def search(self, value: int = 8) -> FitSearch:
        measured = outcome_of(self.peak(value), self.capacity)
        return FitSearch(TRIAL, measured, "batch_size", value, self.capacity, self.run)

    def run(self, trial: Trial, purpose: str, label: str) -> Outcome:
        self.trained.append(trial.batch_size)
        return outcome_of(self.peak(trial.batch_size), self.capacity)


def test_linear_peak_takes_one_more_point_and_two_proofs():
    machine = Machine(lambda batch: 100 * MIB + 7 * MIB * batch, 1000 * MIB)
    answer = machine.search().answer("confirmed")
    assert (answer.value, answer.next_value, answer.method) == (128, 129, "confirmed")
    assert machine.trained == [4, 128, 129]
    assert machine.search().answer(None).value == 128


@pytest.mark.parametrize("first", [1, 8, 500])
def test_steps_of_twenty_mebibytes_are_searched_to_the_end(first: int):
    machine = Machine(lambda batch: -(-(30 + 3 * batch) // 20) * 20 * MIB, 400 * MIB)
    answer = machine.search(first).answer("predicted")
    assert (answer.value, answer.method) == (123, "predicted")
    assert len(machine.trained) <= 18


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
    answer = machine.search(first).answer("confirmed")
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

    search = FitSearch(TRIAL, outcome_of(10 * MIB, None), "d_model", 96, 100 * MIB, refuse)
    assert search.answer("confirmed") is None
