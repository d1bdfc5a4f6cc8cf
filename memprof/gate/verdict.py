"""The verdict of the gate on one limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from memprof.documents.confidence import Document
from memprof.gate.metrics import METRICS, Metric

Status = Literal[
    "passed", "exceeded", "improved", "new", "missing", "failed", "does-not-fit", "unmeasured", "other-environment"
]
Weight = Literal["ok", "note", "warning", "error"]


class Verdict(Document):
    """The verdict of the gate on one limit of one optimizer in one entry, or on its run as a whole.

    Attributes:
        entry: The name of the budget.
        optimizer: The optimizer spec.
        metric: The name of the figure; null for a verdict on the run as a whole.
        status: `passed`, `exceeded`, `improved` (the baseline is stale), `new` (the baseline has no such figure yet),
            `missing` (the baseline has a figure and this run does not), `failed`, `does-not-fit`, `unmeasured` (the
            device has no such figure), or `other-environment` (the figure depends on the environment, and the baseline
            was made in another one).
        weight: How serious it is; `error` fails the build.
        value: The figure.
        limit: The limit as the user wrote it.
        bound: The value that the figure was compared with.
        base: The figure of the baseline, for a limit on growth.
        reason: An explanation if the figures alone are not enough.
        message: The message of the user.
        why: Which categories and modules grew, the largest first.
        remedies: Changes that would meet the budget.
    """

    entry: str
    optimizer: str
    metric: str | None = None
    status: Status
    weight: Weight
    value: int | None = None
    limit: str | None = None
    bound: int | None = None
    base: int | None = None
    reason: str | None = None
    message: str | None = None
    why: list[str] = Field(default_factory=list)
    remedies: list[str] = Field(default_factory=list)


def counts(verdicts: Sequence[Verdict]) -> Mapping[Weight, int]:
    """Return the number of verdicts of each weight."""
    weights: tuple[Weight, ...] = ("ok", "note", "warning", "error")
    return {weight: sum(verdict.weight == weight for verdict in verdicts) for weight in weights}


def metric_of(verdict: Verdict) -> Metric | None:
    """Return the metric of a verdict, or None for a verdict on the run as a whole."""
    return METRICS[verdict.metric] if verdict.metric is not None else None
