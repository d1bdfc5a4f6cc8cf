"""The worker's job that measures a trial, in this process or in one process for each rank."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel

from memprof.documents.jobs import Outcome, Trial
from memprof.measurement.trial import run_trial


def run(trial: Trial, send: Callable[[BaseModel], None]) -> Outcome:
    """Train a trial and return its outcome.

    Args:
        trial: The trial.
        send: Takes a `Step` whenever a training step begins.

    Raises:
        MemprofError: The workload or the recipe is at fault, so that no optimizer could run.
    """
    if trial.recipe.strategy == "single":
        return run_trial(trial, send)
    from memprof.measurement.ranks.launch import run_ranks  # torch.multiprocessing is needed by ranks alone

    return run_ranks(trial, send)
