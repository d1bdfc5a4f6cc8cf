"""Finds the largest batch and model of an entry with the search of `memprof fit`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memprof.documents.comparison import FitAnswer
from memprof.errors import MemprofError
from memprof.gate.config import Budget
from memprof.gate.entry_figures import Figures
from memprof.workers.launcher import Launcher
from memprof.workers.progress import OnProgress


def is_here(device: str) -> bool:
    """Return whether the name of a device means one of this machine's devices, not a simulated one."""
    return device in ("auto", "cpu") or device.split(":", maxsplit=1)[0] == "cuda"


def add_fits(
    budget: Budget, figures: Sequence[Figures], scale: str | None, launcher: Launcher | None, told: OnProgress | None
) -> list[Figures]:
    """Add the largest batch and model to predicted figures, if the entry limits them.

    Args:
        budget: The entry.
        figures: The figures of its optimizers.
        scale: The workload's scale knob, or None.
        launcher: The fork server.
        told: A function that is called with every progress event.

    Returns:
        The figures with the answers of the searches.

    Raises:
        MemprofError: The search failed for a reason that does not depend on the optimizer.
    """
    limited = {limit.metric.name for limit in budget.limits}
    knobs = {"max_batch_size": "batch_size", **({"max_scale": scale} if scale is not None else {})}
    done = list(figures)
    for name, knob in knobs.items():
        if name in limited:
            optimizers = [one.optimizer for one in figures if one.status != "failed"]
            answers = _search(budget, knob, optimizers, launcher, told, budget.capacity_bytes)
            done = [_with_fit(one, name, answers.get(one.optimizer)) for one in done]
    return done


def largest_batch(
    budget: Budget, optimizer: str, bound: int, launcher: Launcher | None, told: OnProgress | None
) -> int | None:
    """Return the largest batch size below the entry's own whose predicted peak stays within a bound.

    Args:
        budget: The entry.
        optimizer: The optimizer spec.
        bound: The bound in bytes.
        launcher: The fork server.
        told: A function that is called with every progress event.

    Returns:
        The batch size, or None if there is none. A failed search also gives None, because the answer is only advice.
    """
    if budget.settings.batch_size < 2:
        return None
    vary = f"batch_size=1:{budget.settings.batch_size - 1}"
    try:
        answer = _search(budget, vary, [optimizer], launcher, told, bound).get(optimizer)
    except MemprofError:
        return None
    return answer.value or None if answer is not None else None


def _search(
    budget: Budget,
    vary: str,
    optimizers: Sequence[str],
    launcher: Launcher | None,
    told: OnProgress | None,
    capacity: int | None,
) -> dict[str, FitAnswer]:
    from memprof.api import fit

    settings = budget.settings
    arguments: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "knobs": settings.knobs,
        "inputs": settings.inputs,
        "target": settings.target,
        "recipe": budget.recipe,
    }
    report = fit(
        settings.model or "",
        vary=vary,
        optimizers=optimizers,
        devices=[settings.device],
        budget=capacity,
        confirm=False,
        on_progress=told,
        launcher=launcher,
        **arguments,
    )
    return {cell.optimizer: cell.answer for cell in report.cells if cell.answer is not None}


def _with_fit(figures: Figures, name: str, answer: FitAnswer | None) -> Figures:
    if answer is None:
        return figures
    if answer.value is None:
        return figures.model_copy(update={"unlimited": [*figures.unlimited, name]})
    return figures.model_copy(update={"values": {**figures.values, name: answer.value}})
