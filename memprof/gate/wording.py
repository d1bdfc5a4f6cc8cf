"""Turns verdicts into sentences, for every format."""

from __future__ import annotations

from memprof.gate.explain import signed
from memprof.gate.metrics import Metric
from memprof.gate.verdict import Status, Verdict, metric_of
from memprof.units import format_size

MARKS: dict[Status, str] = {
    "passed": "ok",
    "exceeded": "EXCEEDED",
    "improved": "stale baseline",
    "new": "new",
    "missing": "MISSING",
    "failed": "FAILED",
    "does-not-fit": "DOES NOT FIT",
    "unmeasured": "UNMEASURED",
    "other-environment": "OTHER ENVIRONMENT",
}
_TINY = 0.05  # percent


def mark(verdict: Verdict) -> str:
    """Return a verdict in one or two words, in lower case if it only warns."""
    text = MARKS[verdict.status]
    return text.lower() if verdict.weight == "warning" else text


def subject(verdict: Verdict) -> str:
    """Return the subject of a verdict, such as `pretrain/adam`."""
    return f"{verdict.entry}/{verdict.optimizer}"


def headline(verdict: Verdict) -> str:
    """Return one sentence with the subject, the figure, its limit and the excess."""
    metric = metric_of(verdict)
    if metric is None or verdict.value is None or verdict.bound is None:
        return f"{subject(verdict)}: {_without_figures(verdict, metric)}"
    if verdict.status == "improved":
        return f"{subject(verdict)}: {_improved(verdict, metric)}"
    if verdict.status != "exceeded":
        return f"{subject(verdict)}: {metric.name} {figure(verdict)}, limit {bound(verdict)}"
    excess = abs(verdict.value - verdict.bound)
    beyond = "below" if metric.higher_is_better else "over"
    return (
        f"{subject(verdict)}: {metric.name} is {figure(verdict)}, {metric.text(excess)} {beyond} "
        f"the limit of {bound(verdict)}"
    )


def figure(verdict: Verdict) -> str:
    """Return the value as text. It is given in bytes if the rounded value would equal the rounded bound."""
    metric = metric_of(verdict)
    if metric is None or verdict.value is None:
        return "-"
    return metric.text(verdict.value, exact=_tied(verdict, metric))


def bound(verdict: Verdict) -> str:
    """Return the bound as text. For a limit on growth, the baseline and the limit follow in brackets."""
    metric = metric_of(verdict)
    if metric is None or verdict.limit is None:
        return "-"
    if verdict.bound is None:
        return verdict.limit
    text = metric.text(verdict.bound, exact=_tied(verdict, metric))
    if verdict.base is None:
        return text
    return f"{text} (baseline {metric.text(verdict.base)} {verdict.limit})"


def change(verdict: Verdict) -> str:
    """Return the signed difference between a value and the baseline, or `-` if there is no baseline."""
    metric = metric_of(verdict)
    if metric is None or verdict.value is None or verdict.base is None:
        return "-"
    return moved(metric, verdict.base, verdict.value)


def share(metric: Metric | None, old: int | None, new: int | None) -> str:
    """Return a change for a table that also shows both figures: `+2.1 %`, or the amount if the share is tiny."""
    if metric is None or old is None or new is None:
        return "-"
    if old == new:
        return "="
    if not old:
        return "from 0"
    return f"{_percent(old, new):+.1f} %" if abs(_percent(old, new)) >= _TINY else _amount(metric, old, new)


def moved(metric: Metric, old: int, new: int) -> str:
    """Return a change as `+1.20 GiB (+12.3 %)`, or `=` if the figures are equal."""
    if new == old:
        return "="
    amount, percent = _amount(metric, old, new), _percent(old, new)
    return f"{amount} ({percent:+.1f} %)" if abs(percent) >= _TINY else amount


def _amount(metric: Metric, old: int, new: int) -> str:
    return signed(new - old) if metric.in_bytes else f"{new - old:+d}"


def _percent(old: int, new: int) -> float:
    return 100 * (new - old) / old if old else 0.0


def _without_figures(verdict: Verdict, metric: Metric | None) -> str:
    what = f"{metric.name}, limit {verdict.limit}: " if metric is not None else ""
    if verdict.status == "new":
        return f"{what}the baseline has no figure yet to compare with"
    words = {"failed": "the trial failed", "does-not-fit": "does not fit", "missing": "missing"}
    reason = " ".join((verdict.reason or "").split())
    return f"{what}{': '.join(part for part in (words.get(verdict.status), reason) if part)}"


def _improved(verdict: Verdict, metric: Metric) -> str:
    return (
        f"{metric.name} is {figure(verdict)}, better than the baseline of {metric.text(verdict.base)} by more than "
        f"{verdict.limit}: the baseline is stale"
    )


def _tied(verdict: Verdict, metric: Metric) -> bool:
    """Return whether value and bound differ but would look the same when rounded."""
    if not metric.in_bytes or verdict.value is None or verdict.bound is None or verdict.value == verdict.bound:
        return False
    return format_size(verdict.value) == format_size(verdict.bound)


def details(verdict: Verdict) -> list[tuple[str, str]]:
    """Return the lines below a headline as pairs of a label and a sentence; the user's message comes last."""
    shown_already = verdict.value is None or verdict.bound is None
    lines = [("why", sentence) for sentence in verdict.why]
    lines += [("fits", sentence) for sentence in verdict.remedies]
    lines += [("note", verdict.reason)] if verdict.reason and not shown_already else []
    lines += [("says", " ".join(verdict.message.split()))] if verdict.message else []
    return lines
