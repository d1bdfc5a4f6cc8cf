"""The worker's job that measures a trial, in this process or in one process for each rank."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel

from memprof.documents.jobs import Outcome, ScriptTrial, Trial
from memprof.measurement.script import measure_script
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


def run_script(job: ScriptTrial, send: Callable[[BaseModel], None]) -> Outcome:
    """Return the outcome of a script; its steps are sent as they end.

    Raises:
        MemprofError: the script is at fault, or takes no training step.
    """
    if job.world_size is None:
        return measure_script(job, send)
    from memprof.measurement.ranks.launch import run_ranks

    return run_ranks(job, send)
