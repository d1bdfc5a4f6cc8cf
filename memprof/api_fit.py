"""`memprof.fit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memprof.api import check_arguments, spec_of
from memprof.documents.fit import FitReport
from memprof.documents.optimizer_spec import DEFAULT_OPTIMIZERS, parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.vary import parse_vary, with_global_batch
from memprof.documents.workload_spec import KnobValue, WorkloadSpec
from memprof.errors import UsageError
from memprof.search.request import FitRequest
from memprof.search.run import OnReport, find_fits
from memprof.units import parse_size
from memprof.workers.launcher import Launcher
from memprof.workers.progress import OnProgress


def fit(
    model: str | Callable[..., Any],
    *,
    vary: str = "batch_size",
    optimizers: Sequence[str] = DEFAULT_OPTIMIZERS,
    devices: Sequence[str] = ("auto",),
    batch_size: int = 8,
    knobs: Mapping[str, KnobValue] | None = None,
    inputs: Sequence[str] = (),
    target: str | None = None,
    recipe: Recipe | None = None,
    global_batch: int | None = None,
    budget: str | int | None = None,
    margin: str = "0%",
    confirm: bool = True,
    command: str | None = None,
    on_progress: OnProgress | None = None,
    on_report: OnReport | None = None,
    launcher: Launcher | None = None,
) -> FitReport:
    """Find the largest value of a knob for each optimizer on each device.

    The search goes by prediction; the answer and its successor are always evaluated. For a device that is here both
    are trained as well, in fresh processes under a cap: three steps each, optimizer state and all. Batches are made by
    the workload's `longest_batch` where it has one, so that the answer holds for every batch of that size.

    Args:
        model: as for `memprof.compare`.
        vary: `KNOB`, `KNOB=LO:HI` or `KNOB=LO:HI:STEP`; the knob is `batch_size` or a whole-number one of the workload.
        optimizers: optimizer specs such as `sm3,momentum=0.9`.
        devices: what to fill: `auto`, `cpu`, `cuda:N`, a GPU to predict for (`rtx-4090`), a size (`24GiB`).
        batch_size: samples in each micro-batch where another knob is varied; else where the search begins.
        knobs: keywords of the workload.
        inputs: for a plain module, what its inputs are.
        target: for a plain module, what its loss compares with.
        recipe: how it is trained.
        global_batch: samples of one optimizer step, over all ranks and micro-batches: the batch size is then searched
            among those that make it up exactly, each with as many micro-batches as that takes. Without it
            `recipe.accumulate` is kept, whatever the batch size.
        budget: in place of the devices' memory: a size such as `"24GiB"`, or bytes. A smaller card is so imitated on a
            larger one.
        margin: memory to leave free: a share such as `5%`, or a size.
        confirm: prove by training, on devices that are here.
        command: the command line to record in the result.
        on_progress: told about every evaluation.
        on_report: given the report so far after every finished cell.
        launcher: a fork server to share with other calls; started and ended here if not given.

    Raises:
        UsageError: an argument, the workload or the recipe is at fault.
        MemprofError: something failed that has to do with no single optimizer.
    """
    specs = [parse_optimizer(text) for text in optimizers]
    recipe = recipe or Recipe()
    check_arguments(specs, batch_size, recipe, None)
    if not devices:
        raise UsageError("there is no device to fill; give at least one, for example --device rtx-4090")
    capacity = parse_size(budget) if isinstance(budget, str) else budget
    if capacity is not None and capacity < 1:
        raise UsageError(f"the budget is {budget}; it must be more than nothing")
    varied = parse_vary(vary)
    if global_batch is not None:
        varied = with_global_batch(varied, global_batch, recipe)
    request = FitRequest(
        workload=WorkloadSpec(
            model=spec_of(model), knobs=dict(knobs or {}), inputs=tuple(inputs), target=target, longest=True
        ),
        optimizers=specs,
        devices=list(devices),
        vary=varied,
        batch_size=batch_size,
        recipe=recipe,
        budget=capacity,
        margin=margin,
        confirm=confirm,
        command=command,
    )
    return find_fits(request, on_progress, launcher, on_report)
