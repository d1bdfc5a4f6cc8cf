"""Checks whether a result was reproduced: predicted figures must be equal, measured figures equal within their noise.

The noise of a measured figure is that of `memprof.gate.metrics`: 0 for state, parameters and tensors, 2 % for allocated
memory, 5 % for reserved memory, and 10 % for the memory of the process. Step times, losses and sentences are not
compared. Figures that a newer version adds do not count as differences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from memprof.documents.advice import AdviceReport
from memprof.documents.comparison import Comparison, Environment, Run
from memprof.documents.fit import FitCell, FitReport
from memprof.documents.load import AnyReport
from memprof.gate.baseline import within_noise
from memprof.gate.metrics import FITTED, METRICS
from memprof.units import format_size

# Fields that are not compared, because they hold sentences or times.
_WORDS = {"notes", "confidence", "reason", "validation", "pending", "points", "steps"}
_ENVIRONMENT = ("torch", "processor", "instruction_set", "cores", "threads", "gpu", "driver")
_FIT_NOISE = float(METRICS["max_batch_size"].noise)


@dataclass
class Agreement:
    """How far a saved result agrees with a new one.

    Attributes:
        compared: The number of figures that were compared.
        differences: A sentence for each figure that differs.
        remarks: Sentences about differences of machine and version, and about what was not compared.
    """

    compared: int = 0
    differences: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def check(self, subject: str, figure: str, old: Any, new: Any, share: float = 0.0) -> None:
        """Compare one figure.

        Args:
            subject: The run that it belongs to.
            figure: The name of the figure.
            old: The saved value.
            new: The new value.
            share: How much the figure may differ, as a share of the saved value.
        """
        self.compared += 1
        both_whole = isinstance(old, int) and isinstance(new, int)
        if old != new and not (both_whole and within_noise(old, new, share)):
            beyond = f", beyond {share:.0%}".replace("%", " %") if share else ""
            self.differences.append(f"{subject}: {figure} was {old} and is {new}{beyond}")


def agreement(old: AnyReport, new: AnyReport) -> Agreement:
    """Compare a saved result with the result of running its command again.

    Args:
        old: The saved result.
        new: The new result.

    Returns:
        The differences.
    """
    found = Agreement(remarks=_environment_changes(old.environment, new.environment))
    if isinstance(old, Comparison) and isinstance(new, Comparison):
        _compare_runs(found, old, new)
    elif isinstance(old, FitReport) and isinstance(new, FitReport):
        _compare_cells(found, old, new)
    elif isinstance(old, AdviceReport) and isinstance(new, AdviceReport):
        _exactly(found, old.optimizer, old, new, {"environment"})
    else:
        found.differences.append("the command made another kind of document")
    return found


def _environment_changes(old: Environment, new: Environment) -> list[str]:
    pairs = ((name, getattr(old, name), getattr(new, name)) for name in _ENVIRONMENT)
    return [f"{name} was {before} and is {after}" for name, before, after in pairs if before != after]


def _compare_runs(found: Agreement, old: Comparison, new: Comparison) -> None:
    made = {run.optimizer.spec: run for run in new.runs}
    same_capacity = old.capacity == new.capacity
    if not same_capacity:
        sizes = f"{format_size(new.capacity.bytes)} instead of {format_size(old.capacity.bytes)}"
        found.remarks.append(f"the capacity is {sizes}: the largest batch and model are not compared")
    for run in old.runs:
        again = made.get(run.optimizer.spec)
        if again is None:
            found.differences.append(f"{run.optimizer.spec}: it was not run")
        elif run.source == again.source == "predicted":
            _exactly(found, run.optimizer.spec, run, again, _WORDS if same_capacity else {*_WORDS, "fit"})
        else:
            _within_noise(found, run, again, same_capacity)


def _within_noise(found: Agreement, old: Run, new: Run, same_capacity: bool) -> None:
    subject = old.optimizer.spec
    found.check(subject, "status", old.status, new.status)
    for name, metric in METRICS.items():
        before = metric.read(old)
        if before is not None and (same_capacity or name not in FITTED):
            found.check(subject, name, before, metric.read(new), float(metric.noise_of(old.source)))


def _compare_cells(found: Agreement, old: FitReport, new: FitReport) -> None:
    made = {(cell.optimizer, cell.device): cell for cell in new.cells}
    simulated = {device.name for device in old.devices if device.simulated}
    for cell in old.cells:
        again, subject = made.get((cell.optimizer, cell.device)), f"{cell.optimizer} on {cell.device}"
        if again is None:
            found.differences.append(f"{subject}: it was not searched for")
        elif cell.device in simulated:
            _exactly(found, subject, cell, again, _WORDS)
        else:
            found.check(subject, f"largest {old.vary.knob}", _largest(cell), _largest(again), _FIT_NOISE)


def _largest(cell: FitCell) -> int | None:
    return cell.answer.value if cell.answer is not None else None


def _exactly(found: Agreement, subject: str, old: BaseModel, new: BaseModel, left_out: set[str]) -> None:
    made = dict(_leaves(new.model_dump(mode="json", exclude=left_out)))
    for path, value in _leaves(old.model_dump(mode="json", exclude=left_out)):
        if value is not None and not _WORDS.intersection(path):
            found.check(subject, ".".join(path), value, made.get(path))


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every value of a document with its path."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, str(index)))
    else:
        yield path, value
