"""Errors of estimates in summary: the figures of the published protocol, and who erred to which side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tests.accuracy.xmem.predictions import Prediction
from tests.accuracy.xmem.truth import Row


@dataclass(frozen=True)
class Summary:
    """Relative errors of a set of estimates.

    Attributes:
        rows: how many.
        median: of the absolute errors.
        p90: 90th percentile of the absolute errors.
        p95: 95th percentile.
        worst: the largest absolute error.
        signed: median of the signed errors; below zero: too low.
        under: share of estimates below the truth.
    """

    rows: int
    median: float
    p90: float
    p95: float
    worst: float
    signed: float
    under: float


def summarise(errors: Sequence[float]) -> Summary | None:
    """Return the summary of signed relative errors; None of none."""
    if not errors:
        return None
    absolute = sorted(abs(error) for error in errors)
    return Summary(
        rows=len(errors),
        median=statistics.median(absolute),
        p90=percentile(absolute, 0.90),
        p95=percentile(absolute, 0.95),
        worst=absolute[-1],
        signed=statistics.median(errors),
        under=sum(error < 0 for error in errors) / len(errors),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


def upper_held(predictions: Sequence[Prediction]) -> float | None:
    """Return the share of known truths that the upper bound is not below; None of none."""
    bounds = [(p.upper_bytes, p.row.truth_bytes) for p in predictions if not p.row.oom and p.upper_bytes is not None]
    return sum(upper >= truth for upper, truth in bounds) / len(bounds) if bounds else None


def upper_width(predictions: Sequence[Prediction]) -> float | None:
    """Return by how much of the estimate the upper bound is above it, in the median; None of none."""
    widths = [p.upper_bytes / p.bytes - 1 for p in predictions if not p.row.oom and p.upper_bytes and p.bytes]
    return statistics.median(widths) if widths else None


def peer_errors(rows: Sequence[Row], peer: str) -> list[float]:
    """Return another estimator's signed errors, on the rows whose truth is known and that it supports."""
    answers = [(row, row.answer(peer).bytes) for row in rows if not row.oom]
    return [size / row.truth_bytes - 1 for row, size in answers if size is not None]


@dataclass(frozen=True)
class Failures:
    """The two checks of the protocol.

    Attributes:
        flag_wrong: rows whose out-of-memory flag was wrong.
        flag_rows: rows where that can be told.
        cap_failed: rows that said "fits", rightly, and where a limit at the estimate would not have held.
        cap_rows: rows where that can be told.
        failed: rows that failed either.
    """

    flag_wrong: int
    flag_rows: int
    cap_failed: int
    cap_rows: int
    failed: int

    @property
    def rate(self) -> float | None:
        """Share of rows that failed a check; None of none."""
        return self.failed / self.flag_rows if self.flag_rows else None


def failures(predictions: Sequence[Prediction], upper: bool = False) -> Failures:
    """Judge predictions by both checks, the second without the second run that the protocol makes.

    The protocol limits a second run to `round(estimate / total, 2)` of the GPU. A table has no second runs; the limit
    is taken to hold where it is not below the truth. That is stricter than the protocol: many runs need less than they
    took, as the allocator gives back what it does not use before it fails.

    Args:
        predictions: to judge.
        upper: set the limit at the upper bound instead of the point estimate.
    """
    flags = [prediction.oom == prediction.row.oom for prediction in predictions]
    caps = [_cap_holds(prediction, prediction.upper_bytes if upper else prediction.bytes) for prediction in predictions]
    failed = sum(not flag or cap is False for flag, cap in zip(flags, caps, strict=True))
    told = [cap for cap in caps if cap is not None]
    return Failures(flags.count(False), len(flags), told.count(False), len(told), failed)


def _cap_holds(prediction: Prediction, limit: int | None) -> bool | None:
    row = prediction.row
    if row.oom or prediction.oom or limit is None:
        return None
    return round(limit / row.total_bytes, 2) * row.total_bytes >= row.truth_bytes


def peer_failures(rows: Sequence[Row], peer: str, total_share: bool) -> Failures:
    """Judge another estimator: by what the protocol recorded, or by the same rule as `failures`.

    Args:
        rows: to judge it on.
        peer: its name.
        total_share: judge the second check by whether the limit is not below the truth; otherwise by the second run.
    """
    judged = [row for row in rows if row.answer(peer).oom_right is not None]
    caps = [_peer_cap(row, peer, total_share) for row in judged]
    flags = [bool(row.answer(peer).oom_right) for row in judged]
    failed = sum(not flag or cap is False for flag, cap in zip(flags, caps, strict=True))
    told = [cap for cap in caps if cap is not None]
    return Failures(flags.count(False), len(flags), told.count(False), len(told), failed)


def _peer_cap(row: Row, peer: str, total_share: bool) -> bool | None:
    answer = row.answer(peer)
    if answer.cap_failed is None or row.oom or not answer.oom_right:
        return None
    if not total_share:
        return not answer.cap_failed
    return round((answer.bytes or 0) / row.total_bytes, 2) * row.total_bytes >= row.truth_bytes
