"""Computes the verdicts of the gate, with pure functions of the figures, the limits and the baseline.

A figure that equals its limit passes. A limit on growth that is narrower than the noise of the figure is widened to the
noise, because a gate that fails by chance teaches people to run it again until it passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from memprof.gate.baseline import Baseline
from memprof.gate.config import Budget
from memprof.gate.entry_figures import Figures, Record
from memprof.gate.limits import Limit
from memprof.gate.metrics import ANY, Metric, Value
from memprof.gate.verdict import Status, Verdict, Weight


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How strict the gate is.

    Attributes:
        strict: An entry without a baseline fails its limits on growth.
        fail_on_improvement: A figure fails if it improved by more than it would be allowed to get worse.
        other_environment: Measured figures are compared even with a baseline from another environment.
    """

    strict: bool = False
    fail_on_improvement: bool = False
    other_environment: bool = False


def judge(
    budgets: Sequence[Budget],
    figures: Sequence[Figures],
    baseline: Baseline,
    policy: Policy,
    expected: Sequence[str] | None = None,
) -> list[Verdict]:
    """Return all verdicts, in the order of the budgets.

    Args:
        budgets: The entries that were selected to run.
        figures: The figures of their runs.
        baseline: The accepted figures.
        policy: How strict the gate is.
        expected: The names of all entries of the configuration. An entry of the baseline that is not among them gets
            the verdict `missing`. None if only some entries were selected.

    Returns:
        The verdicts.
    """
    made = {(one.entry, one.optimizer): one for one in figures}
    verdicts: list[Verdict] = []
    for budget in budgets:
        for optimizer in budget.optimizers:
            found = made.get((budget.name, optimizer))
            verdicts += _judge_run(budget, optimizer, found, baseline.record(budget.name, optimizer), policy)
        verdicts += _lost_optimizers(budget, baseline)
    return verdicts + _lost_entries(baseline, expected)


def _judge_run(
    budget: Budget, optimizer: str, made: Figures | None, base: Record | None, policy: Policy
) -> list[Verdict]:
    whole_run = partial(_run_verdict, budget, optimizer)
    if made is None:
        return [whole_run("missing", "it was not run")]
    if made.status == "failed":
        return [whole_run("failed", made.reason or "no reason was given")]
    first = [whole_run("does-not-fit", made.reason)] if made.status == "oom" else []
    if made.status == "oom" and not made.values:
        return first
    if not budget.limits and not first:
        return [whole_run("passed", "it fits the device")]
    return first + [_judge(limit, made, base, policy) for limit in budget.limits]


def _lost_optimizers(budget: Budget, baseline: Baseline) -> list[Verdict]:
    lost = [spec for spec in baseline.entries.get(budget.name, {}) if spec not in budget.optimizers]
    reason = "the baseline has this optimizer, but the entry no longer names it"
    return [_run_verdict(budget, spec, "missing", reason) for spec in lost]


def _lost_entries(baseline: Baseline, expected: Sequence[str] | None) -> list[Verdict]:
    if expected is None:
        return []
    reason = "the baseline has this entry, but the configuration no longer does: was it renamed?"
    return [
        Verdict(entry=entry, optimizer=optimizer, status="missing", weight="error", reason=reason)
        for entry, records in baseline.entries.items()
        if entry not in expected
        for optimizer in records
    ]


def _run_verdict(budget: Budget, optimizer: str, status: Status, reason: str | None) -> Verdict:
    """Return a verdict about a run as a whole."""
    failing: Weight = "warning" if budget.settings.level == "warn" else "error"
    return Verdict(
        entry=budget.name,
        optimizer=optimizer,
        status=status,
        weight="ok" if status == "passed" else failing,
        reason=reason,
        message=None if status == "passed" else budget.settings.message,
    )


def _judge(limit: Limit, made: Figures, base: Record | None, policy: Policy) -> Verdict:
    metric = limit.metric
    value = value_of(metric, made)
    verdict = Verdict(
        entry=made.entry,
        optimizer=made.optimizer,
        metric=metric.name,
        status="passed",
        weight="ok",
        value=value if isinstance(value, int) else None,
        limit=limit.text,
    )
    if value is None:
        return _failing(verdict, limit, made, status="unmeasured", reason=_absent(metric, made))
    if limit.bound is not None:
        verdict = verdict.model_copy(update={"bound": limit.bound})
        return verdict if within(metric, value, limit.bound) else _failing(verdict, limit, made)
    if base is None:
        weight: Weight = "error" if policy.strict else "note"
        return verdict.model_copy(update={"status": "new", "weight": weight})
    return _judge_change(verdict, limit, made, base, policy)


def _judge_change(verdict: Verdict, limit: Limit, made: Figures, base: Record, policy: Policy) -> Verdict:
    metric = limit.metric
    accepted, value = value_of(metric, base), value_of(metric, made)
    if accepted is None:
        weight: Weight = "error" if policy.strict else "note"
        return verdict.model_copy(update={"status": "new", "weight": weight})
    elsewhere = incomparable(metric, made, base)
    if elsewhere and not policy.other_environment:
        reason = f"the baseline was made elsewhere: {', '.join(elsewhere)}"
        return _failing(verdict, limit, made, status="other-environment", reason=reason)
    if accepted == ANY or value == ANY:
        verdict = verdict.model_copy(update={"base": accepted if isinstance(accepted, int) else None})
        return verdict if value == ANY else _failing(verdict, limit, made, reason="before, every value fitted")
    assert isinstance(accepted, int)
    assert isinstance(value, int)
    allowed, widened = allowance(limit, made, accepted)
    bound = accepted - allowed if metric.higher_is_better else accepted + allowed
    verdict = verdict.model_copy(update={"bound": bound, "base": accepted, "reason": widened})
    if not within(metric, value, bound):
        return _failing(verdict, limit, made)
    better = value - accepted if metric.higher_is_better else accepted - value
    if better <= allowed:
        return verdict
    weight = "error" if policy.fail_on_improvement else "warning"
    return verdict.model_copy(update={"status": "improved", "weight": weight})


def _failing(
    verdict: Verdict, limit: Limit, made: Figures, status: Status = "exceeded", reason: str | None = None
) -> Verdict:
    warns = limit.level == "warn" or limit.metric.only_warns(made.source, made.device)
    if warns and limit.level != "warn" and reason is None:
        reason = "NVML's figure only warns: other processes influence it"
    return verdict.model_copy(
        update={
            "status": status,
            "weight": "warning" if warns else "error",
            "reason": reason or verdict.reason,
            "message": limit.message,
        }
    )


def value_of(metric: Metric, record: Record) -> Value:
    """Return a figure of a record: `any` if a search found no largest value, and None if the record has no figure."""
    return ANY if metric.name in record.unlimited else record.values.get(metric.name)


def within(metric: Metric, value: Value, bound: int) -> bool:
    """Return whether a figure keeps to a bound. A figure that equals the bound does."""
    if not isinstance(value, int):
        return value == ANY and metric.higher_is_better
    return value >= bound if metric.higher_is_better else value <= bound


def allowance(limit: Limit, made: Record, accepted: int) -> tuple[int, str | None]:
    """Return by how much a figure may get worse.

    Args:
        limit: A limit on growth.
        made: The record with the figure.
        accepted: The figure of the baseline.

    Returns:
        The allowance, in the unit of the figure, and a remark if the limit was widened to the noise.
    """
    asked = limit.allowance(accepted)
    share = limit.metric.noise_of(made.source)
    noise = int(accepted * share)
    if noise <= asked:
        return asked, None
    return noise, f"widened to ±{float(100 * share):g} %, the noise of the figure"


def incomparable(metric: Metric, made: Record, base: Record) -> list[str]:
    """Return the reasons why a figure cannot be compared with the baseline.

    Predicted figures, and figures that do not depend on the machine, can always be compared.

    Args:
        metric: The figure.
        made: The record of this run.
        base: The record of the baseline.

    Returns:
        The differences of the environments; an empty list if the figures can be compared.
    """
    if metric.portable:
        return []
    if made.source != base.source:
        return [f"{base.source} is now {made.source}"]
    if made.source == "predicted":
        return []
    device = [f"device {base.device} is now {made.device}"] if base.device != made.device else []
    return device + base.fingerprint.differences(made.fingerprint)


def _absent(metric: Metric, made: Figures) -> str:
    return f"{made.device} gives no {metric.title}: {metric.absent}"
