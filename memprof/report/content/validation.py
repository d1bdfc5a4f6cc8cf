"""Compares predicted with measured figures: the signed error of every figure, as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from memprof.documents.comparison import CATEGORIES, Comparison, Run
from memprof.documents.confidence import Deviation, Validation
from memprof.documents.wording import category_title, processor_words
from memprof.report.text_table import Table, number_table
from memprof.units import ABSENT, format_share, format_size

_LAYERS = ("state", "tensors", "allocated", "reserved", "process")


def validated(comparison: Comparison) -> list[tuple[Run, Validation]]:
    """Return the measured runs for which a prediction was attempted, with the outcome."""
    return [(run, run.validation) for run in comparison.runs if run.validation is not None]


def reasons(comparison: Comparison) -> list[str]:
    """Return the reasons why runs have no prediction to compare with, each once with the optimizers it is about."""
    about: dict[str, list[str]] = {}
    for run, found in validated(comparison):
        if found.reason is not None:
            about.setdefault(found.reason, []).append(run.optimizer.spec)
    return [f"{', '.join(names)}: {reason}" for reason, names in about.items()]


def remark(comparison: Comparison) -> str:
    """Return how to read the errors, and where the measured figures are from; nothing where there are none."""
    shown = _compared(comparison)
    if not shown:
        return ""
    environment = comparison.environment
    on_gpu = any(run.device.startswith("cuda") for run, _ in shown)
    place = environment.gpu if on_gpu and environment.gpu else processor_words(environment)
    return f"The signed error of the prediction: + is too high. Measured on {place}."


def layer_table(comparison: Comparison) -> Table:
    """Return a table with a row for each optimizer: the errors of its state and of its peak in each layer of memory.

    The last column says whether the upper bound held, if there are upper bounds.
    """
    shown = _compared(comparison)
    layers = [layer for layer in _LAYERS if any(_at_peak(found, layer) for _, found in shown)]
    bounded = any(found.upper_held is not None for _, found in shown)
    held = {True: "held", False: "exceeded", None: ABSENT}
    rows = (
        (
            run.optimizer.spec,
            [*(error_text(_at_peak(found, layer)) for layer in layers), *([held[found.upper_held]] if bounded else [])],
        )
        for run, found in shown
    )
    return number_table("optimizer", [*layers, *(["upper bound"] if bounded else [])], rows)


def phase_table(comparison: Comparison) -> Table:
    """Return a table with a row for each optimizer and layer of memory: the error of the peak within each phase."""
    shown = _compared(comparison)
    phases = _in_order(one.phase for _, found in shown for one in found.deviations)
    rows = (
        (f"{run.optimizer.spec}: {layer}", [error_text(cells.get(phase)) for phase in phases])
        for run, found in shown
        for layer in _LAYERS
        if (cells := _by(found, lambda one: one.phase, layer))
    )
    return number_table("optimizer", phases, rows)


def category_table(comparison: Comparison) -> Table:
    """Return a table with a row for each optimizer: the error of each category at the peak."""
    shown = _compared(comparison)
    names = _in_order(one.category for _, found in shown for one in found.deviations)
    names.sort(key=[*CATEGORIES, *names].index)
    rows = (
        (run.optimizer.spec, [error_text(cells.get(name)) for name in names])
        for run, found in shown
        if (cells := _by(found, lambda one: one.category, "allocated"))
    )
    return number_table("optimizer", [category_title(name) for name in names], rows)


def error_text(one: Deviation | None) -> str:
    """Return a signed error as text: `exact`, a share such as `+1.2 %`, or bytes if the share is too small to show."""
    if one is None:
        return ABSENT
    if not one.error_bytes:
        return "exact"
    sign = "+" if one.error_bytes > 0 else "-"
    share = abs(one.error) if one.error is not None else 0.0
    return f"{sign}{format_share(share) if share >= 5e-5 else format_size(abs(one.error_bytes))}"


def _compared(comparison: Comparison) -> list[tuple[Run, Validation]]:
    return [(run, found) for run, found in validated(comparison) if found.deviations]


def _at_peak(found: Validation, layer: str) -> Deviation | None:
    return next(
        (one for one in found.deviations if one.layer == layer and one.phase is None and one.category is None), None
    )


def _by(found: Validation, key: Callable[[Deviation], str | None], layer: str) -> dict[str, Deviation]:
    return {name: one for one in found.deviations if one.layer == layer and (name := key(one)) is not None}


def _in_order(names: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(name for name in names if name is not None))
