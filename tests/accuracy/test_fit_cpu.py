"""On the CPU under a cap: for every workload and default optimizer the reported batch runs, and one more does not.

Of every workload two optimizers have their turn, each optimizer with two workloads or more; `MEMPROF_EVERYTHING=1` runs
all six.
"""

from __future__ import annotations

import os

import pytest

import memprof
from memprof.devices.target import Target
from memprof.documents.comparison import FitAnswer
from memprof.documents.jobs import Outcome, Trial
from memprof.documents.optimizer_spec import DEFAULT_OPTIMIZERS, parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.prediction.run import predict_runs
from memprof.workers.launcher import Launcher
from tests.small_workloads import SMALL

MIB = 1 << 20
BUDGETS = {"mlp": 24 * MIB, "vit-b16": 8 * MIB}
# One optimizer of each workload is trained again, apart from the search.
AGAIN = dict(zip(SMALL, [*DEFAULT_OPTIMIZERS, "adam"], strict=True))


def optimizers_of(workload: str) -> list[str]:
    if "MEMPROF_EVERYTHING" in os.environ:
        return list(DEFAULT_OPTIMIZERS)
    first = DEFAULT_OPTIMIZERS.index(AGAIN[workload])
    return [DEFAULT_OPTIMIZERS[first], DEFAULT_OPTIMIZERS[(first + 1) % len(DEFAULT_OPTIMIZERS)]]


def budgets(workload: str) -> list[tuple[list[str], int]]:
    """Which optimizers fill which budget; a convolution network is slow, so each fills little more than 4 samples."""
    if workload != "resnet50":
        return [(optimizers_of(workload), BUDGETS.get(workload, 12 * MIB))]
    specs = [parse_optimizer(text) for text in optimizers_of(workload)]
    runs = predict_runs(WorkloadSpec(model=workload, knobs=SMALL[workload]), specs, Recipe(), 4, Target())
    return [([run.optimizer.spec], run.peak.allocated_bytes + 12 * MIB) for run in runs]


def peak_of(launcher: Launcher, workload: str, optimizer: str, batch_size: int, limit: int) -> int | None:
    trial = Trial(
        workload=WorkloadSpec(model=workload, knobs=SMALL[workload]),
        optimizer=parse_optimizer(optimizer),
        device="cpu",
        batch_size=batch_size,
        recipe=Recipe(warmup=0, steps=3),
        limit_bytes=limit,
    )
    outcome = launcher.run(trial)
    assert isinstance(outcome, Outcome)
    return outcome.run.peak.allocated_bytes if outcome.run.status == "ok" else None


@pytest.mark.parametrize("workload", SMALL)
def test_reported_batch_runs_and_its_successor_does_not(launcher: Launcher, workload: str) -> None:
    found: dict[str, tuple[FitAnswer, int]] = {}
    for optimizers, budget in budgets(workload):
        options = {"optimizers": optimizers, "devices": ["cpu"], "budget": budget, "launcher": launcher}
        report = memprof.fit(workload, knobs=SMALL[workload], **options)
        found |= {cell.optimizer: (cell.answer, budget) for cell in report.cells}
        assert report.evaluations.trained <= 4 * len(report.cells)
    assert list(found) == optimizers_of(workload)
    for answer, budget in found.values():
        assert answer.value >= 2
        assert answer.method == "confirmed"
        assert answer.next_value == answer.value + 1
        trained = {point.value: point.peak_bytes for point in answer.points}
        assert trained[answer.value] == answer.peak_bytes <= budget
        assert trained[answer.next_value] is None or trained[answer.next_value] > budget
    answer, budget = found[AGAIN[workload]]
    runs = peak_of(launcher, workload, AGAIN[workload], answer.value, budget)
    fails = peak_of(launcher, workload, AGAIN[workload], answer.next_value, budget)
    assert runs is not None
    assert runs <= budget
    assert fails is None or fails > budget
