"""What is predicted for a measured run, from its description alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from memprof.devices.catalog import find_device
from memprof.devices.context import LATE_WITHIN_BYTES
from memprof.devices.resolve import target_of
from memprof.documents.comparison import Run
from memprof.documents.jobs import Trial
from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.recipe import Recipe, ZeroGrad
from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import MemprofError
from memprof.prediction.run import predict_run
from tests.accuracy.xmem.language_models import FULL, is_padded_ahead, tokens_added
from tests.accuracy.xmem.lengths import LONGEST, STEPS, draw_lengths
from tests.accuracy.xmem.truth import Row

TORCH = "2.6.0"
OPTIMIZERS = {
    "SGD": "sgd,lr=0.001",
    "Adam": "adam,lr=0.001",
    "AdamW": "adamw,lr=0.001",
    "RMSprop": "rmsprop,lr=0.001",
    "Adagrad": "adagrad,lr=0.001",
    "Adafactor": "adafactor,lr=0.001",
}
_ZERO_GRAD: dict[int, ZeroGrad] = {0: "start", 1: "before-backward", 2: "after-step"}
# Where the table does not say: the older code, whose loops differ (in the CNN loop gradients live through forward).
_UNRECORDED: dict[str, ZeroGrad] = {"cnn": "before-backward", "transformer": "after-step", "large": "after-step"}


@dataclass(frozen=True)
class Prediction:
    """What was said of a row.

    Attributes:
        row: the measured run.
        bytes: the point estimate; None if there is none.
        upper_bytes: the upper bound.
        oom: it would run out of memory.
        seconds: of processor time that the estimate took, imports apart.
        reason: why there is no estimate.
        shuffles: the estimates that the point estimate is the median of.
    """

    row: Row
    bytes: int | None
    upper_bytes: int | None
    oom: bool
    seconds: float
    reason: str | None = None
    shuffles: tuple[int, ...] = ()

    @property
    def error(self) -> float | None:
        """Estimate against truth, signed; None where there is no estimate, or the truth is only a lower bound."""
        if self.bytes is None or self.row.oom:
            return None
        return self.bytes / self.row.truth_bytes - 1


def predict_row(row: Row, shuffles: int) -> Prediction:
    """Return the median over a number of shuffles of the data; 0 for lines that are all cut at the longest length."""
    same_training = replace(row, truth_bytes=0, oom=False, answers=(), xmem_seconds=0)
    return replace(_predict(same_training, shuffles), row=row)


@cache
def _predict(row: Row, shuffles: int) -> Prediction:
    """Predict what is trained in a row; what was measured has been taken out."""
    start = time.process_time()
    seeds = _seeds(row, shuffles)
    try:
        found = {seed: _shuffle(row, seed) for seed in set(seeds)}
    except MemprofError as error:
        return Prediction(row, None, None, False, time.process_time() - start, str(error))
    estimates = [found[seed] for seed in seeds]
    sizes = tuple(estimate.bytes for estimate in estimates)
    upper = max(estimate.upper_bytes for estimate in estimates)
    oom = sum(estimate.oom for estimate in estimates) > len(seeds) / 2
    seconds = time.process_time() - start
    return Prediction(row, statistics.median_low(sizes), upper, oom, seconds, None, sizes)


def _seeds(row: Row, shuffles: int) -> Sequence[int]:
    """Shuffles; `FULL` for those in which every step is as long as can be, as they come to the same memory."""
    if row.kind == "cnn" or not shuffles or is_padded_ahead(row.model):
        return [FULL]
    drawn = [draw_lengths(row.batch_size, tokens_added(row.model), seed) for seed in range(shuffles)]
    return [FULL if min(map(max, steps)) == LONGEST else seed for seed, steps in enumerate(drawn)]


@dataclass(frozen=True)
class _Estimate:
    bytes: int
    upper_bytes: int
    oom: bool


def _shuffle(row: Row, seed: int) -> _Estimate:
    """Predict one shuffle of the data; the upper bound is that of the prediction."""
    run = _run(row, seed, limited=True)
    oom = run.status == "oom"
    if oom:
        run = _run(row, seed, limited=False)
    peak = run.peak
    if peak is None or peak.reserved_bytes is None or peak.reserved_upper_bytes is None:
        raise MemprofError(run.reason or "no peak")
    return _Estimate(peak.reserved_bytes + late(row), peak.reserved_upper_bytes + _late_at_most(row), oom)


def late(row: Row) -> int:
    """What libraries load after the first sample, which is in the truth; but in the older rows' it is not.

    The rows without a recorded `zero_grad` come from older code. There the truth is the reserved memory to within a few
    MiB, for every model on both GPUs, so the first sample must have been taken once everything was loaded.
    """
    return 0 if row.zero_grad is None else find_device(row.device).late_bytes


def _run(row: Row, seed: int, limited: bool) -> Run:
    target = target_of(find_device(row.device), torch_version=TORCH)
    if not limited:
        target = replace(target, capacity_bytes=None)
    return predict_run(trial_of(row, seed), target, STEPS)


def _late_at_most(row: Row) -> int:
    """The rule's own uncertainty on top; and of the older rows nobody says that it is not in their truth."""
    return find_device(row.device).late_bytes + LATE_WITHIN_BYTES


def trial_of(row: Row, seed: int) -> Trial:
    """Return the training that a row describes."""
    zero_grad = _UNRECORDED[row.kind] if row.zero_grad is None else _ZERO_GRAD.get(row.zero_grad, "start")
    return Trial(
        workload=_workload(row, seed),
        optimizer=parse_optimizer(OPTIMIZERS[row.optimizer]),
        device=row.device,
        batch_size=row.batch_size,
        recipe=Recipe(zero_grad=zero_grad),
    )


def _workload(row: Row, seed: int) -> WorkloadSpec:
    package = "tests.accuracy.xmem"
    if row.kind == "cnn":
        return WorkloadSpec(model=f"{package}.vision_models:vision_model", knobs={"name": row.model})
    return WorkloadSpec(model=f"{package}.language_models:language_model", knobs={"name": row.model, "seed": seed})
