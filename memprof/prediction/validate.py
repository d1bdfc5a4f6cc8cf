"""Compares a prediction with the measurement of the same trial, figure by figure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from memprof.documents.comparison import Run
from memprof.documents.confidence import Deviation, Validation

_Layer = Literal["tensors", "allocated", "reserved", "process"]
_FIELDS: dict[_Layer, str] = {
    "tensors": "tensor_bytes",
    "allocated": "allocated_bytes",
    "reserved": "reserved_bytes",
    "process": "process_bytes",
}
_ENDINGS = {"oom": "ran out of memory", "failed": "failed"}


def validate(measured: Run, predicted: Run) -> Validation:
    """Compare every figure that both runs have: of the peak, of each phase, and of each category at the peak.

    Args:
        measured: The measured run of a trial.
        predicted: The predicted run of the same trial for the same device.
    """
    for run in (measured, predicted):
        if run.status != "ok":
            reason = f": {run.reason}" if run.reason else ""
            return Validation(reason=f"The {run.source} run {_ENDINGS[run.status]}{reason}")
    upper, held = _bound(measured, predicted)
    return Validation(upper_bytes=upper, upper_held=held, deviations=list(_deviations(measured, predicted)))


def _deviations(measured: Run, predicted: Run) -> Iterator[Deviation]:
    if measured.state is not None and predicted.state is not None:
        yield Deviation(layer="state", predicted_bytes=predicted.state.bytes, measured_bytes=measured.state.bytes)
    for layer in _FIELDS:
        yield from _of_layer(layer, None, measured.peak, predicted.peak)
        for phase in measured.phases:
            yield from _of_layer(layer, phase, measured.phases[phase], predicted.phases.get(phase))
    if measured.breakdown is not None and predicted.breakdown is not None:
        real, guess = measured.breakdown.by_category, predicted.breakdown.by_category
        for category in dict.fromkeys([*real, *guess]):
            yield Deviation(
                layer="allocated",
                category=category,
                predicted_bytes=guess.get(category, 0),
                measured_bytes=real.get(category, 0),
            )


def _of_layer(layer: _Layer, phase: str | None, measured: object, predicted: object) -> Iterator[Deviation]:
    real, guess = getattr(measured, _FIELDS[layer], None), getattr(predicted, _FIELDS[layer], None)
    if real is not None and guess is not None:
        yield Deviation(layer=layer, phase=phase, predicted_bytes=guess, measured_bytes=real)


def _bound(measured: Run, predicted: Run) -> tuple[int | None, bool | None]:
    """Return the bound of the outermost layer that was measured and has a bound, and whether it held."""
    assert measured.peak is not None and predicted.peak is not None  # noqa: PT018  # of runs that are ok
    for layer in ("process", "reserved", "allocated"):
        upper = getattr(predicted.peak, f"{layer}_upper_bytes")
        real = getattr(measured.peak, f"{layer}_bytes")
        if upper is not None and real is not None:
            return upper, real <= upper
    return None, None
