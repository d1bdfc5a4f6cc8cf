"""`memprof.advise`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memprof.api import check_arguments, spec_of
from memprof.documents.advice import AdviceReport
from memprof.documents.jobs import Findings, Inquiry
from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import KnobValue, WorkloadSpec
from memprof.prediction.accuracy import standing
from memprof.search.advise.changes import Setup
from memprof.search.advise.rank import Scales
from memprof.search.advise.rank import advise as weigh_changes
from memprof.search.run import device_of
from memprof.units import parse_size
from memprof.workers.launcher import Launcher
from memprof.workers.pool import Workers
from memprof.workers.progress import OnProgress, Teller


def advise(
    model: str | Callable[..., Any],
    *,
    optimizer: str = "adam",
    device: str = "auto",
    batch_size: int = 8,
    knobs: Mapping[str, KnobValue] | None = None,
    inputs: Sequence[str] = (),
    target: str | None = None,
    recipe: Recipe | None = None,
    budget: str | int | None = None,
    margin: str = "0%",
    command: str | None = None,
    on_progress: OnProgress | None = None,
    launcher: Launcher | None = None,
) -> AdviceReport:
    """Say what to change so that a training fits: each change with what it saves and how much it disturbs.

    Everything is predicted, nothing is trained. Optimizers, their implementations, mixed precision, activation
    checkpointing, smaller micro-batches, where gradients are zeroed, the step in the backward pass and expandable
    segments are tried one by one, and in pairs and threes.

    Args:
        model: as for `memprof.compare`.
        optimizer: the spec in use.
        device: `auto`, `cpu`, `cuda:N`, a GPU to predict for (`rtx-4090`), or a size (`24GiB`).
        batch_size: samples in each micro-batch.
        knobs: keywords of the workload.
        inputs: for a plain module, what its inputs are.
        target: for a plain module, what its loss compares with.
        recipe: how it is trained now.
        budget: in place of the device's memory: a size such as `"24GiB"`, or bytes.
        margin: memory to leave free: a share such as `5%`, or a size.
        command: the command line to record in the result.
        on_progress: told as recipes are weighed.
        launcher: a fork server to share with other calls; started and ended here if not given.

    Raises:
        UsageError: an argument, the workload or the recipe is at fault.
        MemprofError: the training cannot be predicted.
    """
    spec, recipe = parse_optimizer(optimizer), recipe or Recipe()
    check_arguments([spec], batch_size, recipe, None)
    workload = WorkloadSpec(
        model=spec_of(model), knobs=dict(knobs or {}), inputs=tuple(inputs), target=target, longest=True
    )
    capacity = parse_size(budget) if isinstance(budget, str) else budget
    with Workers(2, launcher) as workers:
        inquiry = Inquiry(
            workload=workload, optimizers=[spec], devices=[device], world_size=recipe.world_size, command=command
        )
        found = workers.launchers[0].run(inquiry)
        assert isinstance(found, Findings)
        place, kernels = device_of(found.device, capacity, margin), found.device.kernels
        scales = Scales(workload, place.name, place.usable_bytes, workers, Teller(on_progress))
        now, suggestions = weigh_changes(Setup(spec, recipe, batch_size), kernels != "cpu", scales)
    return AdviceReport(
        environment=found.environment,
        workload=found.workload_info(workload, batch_size),
        recipe=recipe,
        optimizer=spec.text,
        device=place,
        margin=margin,
        now=now,
        suggestions=suggestions,
        evaluations=scales.evaluations,
        notes=[standing()] if kernels != "cpu" else [],
    )
