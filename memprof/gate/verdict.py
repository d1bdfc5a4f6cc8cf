"""What the gate says about one limit."""

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
    """What the gate says about one limit of one optimizer in one entry, or about its run as a whole.

    Attributes:
        entry: the budget's name.
        optimizer: its spec.
        metric: the figure; null for what concerns the run as a whole.
        status: `passed`; `exceeded`; `improved` (the baseline is stale); `new` (nothing accepted yet); `missing`
            (accepted once, and no longer made); `failed`; `does-not-fit`; `unmeasured`; `other-environment` (the
            baseline was made elsewhere, and a measured figure depends on it).
        weight: `error` fails the build.
        value: the figure.
        limit: as the user wrote it.
        bound: what the figure was compared with.
        base: the accepted figure, for limits on the change.
        reason: one sentence, where the figures do not say it all.
        message: the user's own words.
        why: which category and which module grew, largest first.
        remedies: what would meet the budget.
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
    """Return how many verdicts there are of each weight."""
    weights: tuple[Weight, ...] = ("ok", "note", "warning", "error")
    return {weight: sum(verdict.weight == weight for verdict in verdicts) for weight in weights}


def metric_of(verdict: Verdict) -> Metric | None:
    """Return the metric that a verdict is about."""
    return METRICS[verdict.metric] if verdict.metric is not None else None
