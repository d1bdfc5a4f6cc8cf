"""A worker's part of a fit: the search by prediction."""

from __future__ import annotations

from collections.abc import Callable

from memprof.fitting.devices import find_target
from memprof.fitting.survey import Survey
from memprof.fitting.traces import Traces
from memprof.plan import FitForecast, FitMatrix, Step


def forecast_fit(job: FitForecast, emit: Callable[[Step], None]) -> FitMatrix:
    """Search, and tell about every trace.

    Raises:
        UsageError: the workload cannot be predicted, or takes no value of the range.
    """

    def tell(label: str, finished: int, cells: int) -> None:
        emit(Step(stage="step", step=finished, steps=cells, label=label))

    target = find_target(job.device)
    traces = Traces(job.workload, job.optimizers, job.recipe, job.batch_size, job.vary, target)
    answers = Survey(traces, job.capacities, job.present, tell).run()
    return FitMatrix(
        answers=answers,
        failures=traces.failures,
        evaluations=len(traces.parameters),
        refused=sorted(traces.refused),
    )
