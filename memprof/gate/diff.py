"""Compares two saved comparisons figure by figure, and explains the changes as the gate does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from memprof.documents.base import Saved
from memprof.documents.comparison import Comparison
from memprof.documents.confidence import Document
from memprof.gate.baseline import within_noise
from memprof.gate.entry_figures import Figures, figures_of
from memprof.gate.explain import explain
from memprof.gate.metrics import METRICS

SCHEMA: Literal["memprof.difference/1"] = "memprof.difference/1"
Outcome = Literal["same", "within-noise", "better", "worse", "only-old", "only-new"]
# A run is explained by the first of these figures that changed.
_EXPLAINED = ("peak_allocated_bytes", "peak_reserved_bytes", "state_bytes", "process_bytes")


class FigureChange(Document):
    """One figure in both comparisons.

    Attributes:
        metric: The name of the figure.
        old: The figure of the older comparison; null if it has none.
        new: The figure of the newer comparison; null if it has none.
        outcome: How the two compare.
    """

    metric: str
    old: int | None = None
    new: int | None = None
    outcome: Outcome


class RunChange(Document):
    """One optimizer in both comparisons.

    Attributes:
        optimizer: The optimizer spec.
        old_status: How its run ended in the older comparison; null if it has no such run.
        new_status: How its run ended in the newer comparison; null if it has no such run.
        figures: The figures of both runs.
        why: Which categories and modules grew or shrank, the largest first, and which settings differ.
    """

    optimizer: str
    old_status: str | None = None
    new_status: str | None = None
    figures: list[FigureChange] = Field(default_factory=list)
    why: list[str] = Field(default_factory=list)


class Difference(Saved):
    """What changed from one comparison to another.

    Attributes:
        old: The name of the older comparison.
        new: The name of the newer comparison.
        runs: The changes, one item for each optimizer of either comparison.
    """

    schema_: Literal["memprof.difference/1"] = Field(default=SCHEMA, alias="schema")
    old: str
    new: str
    runs: list[RunChange]


def compare_documents(old: Comparison, new: Comparison, names: tuple[str, str]) -> Difference:
    """Compare two comparisons.

    Args:
        old: The older comparison.
        new: The newer comparison.
        names: The names of the older and the newer comparison.

    Returns:
        The changes, for every optimizer of either comparison.
    """
    before = {one.optimizer: one for one in figures_of("", old)}
    after = {one.optimizer: one for one in figures_of("", new)}
    runs = [_run(spec, before.get(spec), after.get(spec)) for spec in dict.fromkeys([*before, *after])]
    return Difference(schema="memprof.difference/1", old=names[0], new=names[1], runs=runs)


def _run(optimizer: str, old: Figures | None, new: Figures | None) -> RunChange:
    figures = _figures(old, new)
    return RunChange(
        optimizer=optimizer,
        old_status=old.status if old is not None else None,
        new_status=new.status if new is not None else None,
        figures=figures,
        why=_why(old, new, figures),
    )


def _figures(old: Figures | None, new: Figures | None) -> list[FigureChange]:
    found = []
    for name in METRICS:
        before = old.values.get(name) if old is not None else None
        after = new.values.get(name) if new is not None else None
        if before is not None or after is not None:
            outcome = _outcome(name, before, after, new)
            found.append(FigureChange(metric=name, old=before, new=after, outcome=outcome))
    return found


def _outcome(name: str, before: int | None, after: int | None, new: Figures | None) -> Outcome:
    if before is None or after is None or new is None:
        return "only-new" if before is None else "only-old"
    if before == after:
        return "same"
    metric = METRICS[name]
    if within_noise(before, after, float(metric.noise_of(new.source))):
        return "within-noise"
    return "better" if (after > before) is metric.higher_is_better else "worse"


def _why(old: Figures | None, new: Figures | None, figures: Sequence[FigureChange]) -> list[str]:
    if old is None or new is None:
        return []
    moved = [one.metric for one in figures if one.outcome in ("better", "worse", "within-noise")]
    telling = next((name for name in _EXPLAINED if name in moved), _EXPLAINED[0])
    return explain(METRICS[telling], old, new)
