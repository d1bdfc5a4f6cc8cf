"""Joins the outcomes of a trial's ranks into one: that of the largest rank, with a line for each rank."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from memprof.documents.comparison import Rank, Run, Steps
from memprof.documents.jobs import Outcome

_ON_THE_CPU = (
    "The ranks share this machine's cores, so their steps take longer than on devices of their own. What gloo takes "
    "for itself counts in the process's figure alone."
)


def gather(outcomes: Sequence[Outcome], rank: int | None = None) -> Outcome:
    """Return the outcome of the rank that takes the most memory of its device, with a line for each rank.

    A single outcome is returned unchanged.

    Its steps are those of the whole job: a step takes as long as its slowest rank, and the loss is the mean over all
    ranks.

    Args:
        outcomes: The outcomes of all ranks in order. The run of each is `ok`.
        rank: The rank whose outcome is returned instead.
    """
    if len(outcomes) == 1:
        return outcomes[0]
    ranks = [_rank(number, outcome.run) for number, outcome in enumerate(outcomes)]
    highest = max(range(len(outcomes)), key=lambda number: (_needed(outcomes[number].run), -number))
    top = highest if rank is None else rank
    chosen = outcomes[top]
    update = {
        "rank": top,
        "ranks": ranks,
        "steps": _steps([outcome.run for outcome in outcomes], chosen.run),
        "notes": [*chosen.run.notes, *([_ON_THE_CPU] if chosen.run.device == "cpu" else [])],
    }
    return chosen.model_copy(update={"run": chosen.run.model_copy(update=update)})


def _needed(run: Run) -> int:
    """Return the bytes that count against a device's capacity."""
    assert run.peak is not None
    return run.peak.reserved_bytes or run.peak.allocated_bytes


def _rank(number: int, run: Run) -> Rank:
    assert run.parameters is not None
    assert run.state is not None
    assert run.peak is not None
    return Rank(
        rank=number,
        device=run.device,
        parameters_bytes=run.parameters.bytes,
        state_bytes=run.state.bytes,
        peak=run.peak,
    )


def _steps(runs: Sequence[Run], chosen: Run) -> Steps | None:
    every = [run.steps for run in runs if run.steps is not None]
    if chosen.steps is None or len(every) < len(runs):
        return chosen.steps
    return Steps(
        seconds=[max(times) for times in zip(*(steps.seconds for steps in every), strict=True)],
        losses=[fmean(losses) for losses in zip(*(steps.losses for steps in every), strict=True)],
        allocated_bytes=chosen.steps.allocated_bytes,
    )
