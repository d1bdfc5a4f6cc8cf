"""A worker's part of a fit: the search by prediction."""

from __future__ import annotations

from collections.abc import Callable

from memprof.devices.resolve import find_target
from memprof.documents.comparison import FitAnswer
from memprof.documents.jobs import FitForecast, FitFound, FitMatrix, Step
from memprof.search.by_prediction import Survey
from memprof.search.trace_cache import Traces


def forecast_fit(job: FitForecast, emit: Callable[[Step], None]) -> FitMatrix:
    """Search, and tell about every trace and every cell that is finished.

    Raises:
        UsageError: the workload cannot be predicted, or takes no value of the range.
    """

    def tell(value: int) -> None:
        emit(Step(stage="step", label=f"{job.vary.knob}={value}"))

    def tell_found(cell: int, answer: FitAnswer | None, reason: str | None) -> None:
        emit(Step(stage="step", found=FitFound(cell=cell, answer=answer, reason=reason)))

    target = find_target(job.device)
    traces = Traces(job.workload, job.optimizers, job.recipe, job.batch_size, job.vary, target)
    Survey(traces, job.capacities, job.present, tell, tell_found).run()
    return FitMatrix(evaluations=len(traces.parameters), refused=sorted(traces.refused))
