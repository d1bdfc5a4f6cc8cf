"""The Python API: `memprof.compare`, `predict`, `fit` and `advise`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from memprof.comparison import Study
from memprof.documents.advice import AdviceReport
from memprof.documents.comparison import Comparison
from memprof.documents.fit import FitReport
from memprof.documents.jobs import Findings, Inquiry
from memprof.documents.optimizer_spec import DEFAULT_OPTIMIZERS, OptimizerSpec, parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.vary import parse_vary, with_global_batch
from memprof.documents.workload_spec import KnobValue, WorkloadSpec
from memprof.errors import UsageError
from memprof.prediction.accuracy import standing
from memprof.search.advise.changes import TrainingSetup
from memprof.search.advise.suggestions import SetupEvaluator
from memprof.search.advise.suggestions import suggest as suggest_changes
from memprof.search.find_fits import OnReport, device_of, find_fits
from memprof.search.request import FitRequest
from memprof.units import parse_size
from memprof.workers.launcher import Launcher
from memprof.workers.pool import Workers
from memprof.workers.progress import OnComparison, OnProgress, ProgressReporter


def compare(
    model: str | Callable[..., Any],
    *,
    batch_size: int = 8,
    knobs: Mapping[str, KnobValue] | None = None,
    inputs: Sequence[str] = (),
    target: str | None = None,
    optimizers: Sequence[str] = DEFAULT_OPTIMIZERS,
    device: str = "auto",
    recipe: Recipe | None = None,
    budget: str | int | None = None,
    fit: bool = True,
    confirm: bool = False,
    validate: bool = False,
    reference: str | None = None,
    command: str | None = None,
    trace_folder: str | Path | None = None,
    on_progress: OnProgress | None = None,
    on_comparison: OnComparison | None = None,
    launcher: Launcher | None = None,
) -> Comparison:
    """Train a workload with each optimizer, each in a fresh process, and say what memory it took.

    Args:
        model: a built-in name, `path/to/file.py:attr`, `package.module:attr`, `hf:PATH_OR_ID`, or a function or
            class that stands in a file (workers import it from there).
        batch_size: samples in each micro-batch.
        knobs: keywords of the workload.
        inputs: for a plain module, what its inputs are (`float32[B,3,224,224]`).
        target: for a plain module, what its loss compares with (`int64[B]<1000`).
        optimizers: optimizer specs such as `sm3,momentum=0.9`.
        device: `auto`, `cpu`, `cuda`, `cuda:N`; or a simulated GPU (`rtx-4090`, `24GiB`): then nothing is trained,
            and every run is `predicted`.
        recipe: how it is trained.
        budget: the capacity for the largest batch and model: a size such as `"24GiB"`, or bytes. Default: the
            device's memory.
        fit: find the largest batch and the largest model, with the workload's `longest_batch` where it has one.
        confirm: prove these answers by training them.
        validate: predict every trial as well, and note how far each figure was off (`Run.validation`).
        reference: the optimizer spec that others are compared with.
        command: the command line to record in the result.
        trace_folder: an existing folder for each run's whole trace, as PyTorch's memory viewer and Perfetto open it.
        on_progress: told about every step.
        on_comparison: given the comparison so far after every finished trial.
        launcher: the fork server to use, for several comparisons in a row; a new one where it is not given.

    Raises:
        UsageError: an argument, the workload or the recipe is at fault.
        MemprofError: something failed that has to do with no single optimizer.
    """
    specs = [parse_optimizer(text) for text in optimizers]
    check_arguments(specs, batch_size, recipe or Recipe(), reference)
    workload = WorkloadSpec(model=spec_of(model), knobs=dict(knobs or {}), inputs=tuple(inputs), target=target)
    capacity = parse_size(budget) if isinstance(budget, str) else budget
    with Workers(1, launcher) as workers:
        study = Study(workers, workload, specs, batch_size, recipe or Recipe(), on_progress, on_comparison)
        trains = "--confirm" if confirm else "--validate" if validate else None
        study.inquire(device, capacity, reference, command, trains)
        if fit:
            study.expect_fits(confirm)
        study.measure(str(Path(trace_folder).resolve()) if trace_folder is not None else None)
        if validate:
            study.validate()
        if fit:
            study.fit(confirm)
        return study.comparison


def predict(
    model: str | Callable[..., Any],
    *,
    device: str = "auto",
    batch_size: int = 8,
    knobs: Mapping[str, KnobValue] | None = None,
    inputs: Sequence[str] = (),
    target: str | None = None,
    optimizers: Sequence[str] = DEFAULT_OPTIMIZERS,
    recipe: Recipe | None = None,
    budget: str | int | None = None,
    fit: bool = False,
    reference: str | None = None,
    on_progress: OnProgress | None = None,
    on_comparison: OnComparison | None = None,
    launcher: Launcher | None = None,
) -> Comparison:
    """Say what memory training takes with each optimizer, without training: on fake tensors, on any machine.

    `device` is a GPU of the catalog (`rtx-4090`), a size (`24GiB`), or one of this machine's (`auto`, `cpu`, `cuda:N`),
    which is then predicted for, too, and not used; with `fit` the largest batch and model are predicted as well.
    The other arguments are those of `compare`. Every run is `predicted` and carries upper bounds where it is for a GPU,
    and what it rests on (`Run.confidence`).

    Raises:
        UsageError: an argument, the workload or the recipe is at fault, or the model decides by values that depend
            on the data.
    """
    specs = [parse_optimizer(text) for text in optimizers]
    check_arguments(specs, batch_size, recipe or Recipe(), reference)
    workload = WorkloadSpec(model=spec_of(model), knobs=dict(knobs or {}), inputs=tuple(inputs), target=target)
    capacity = parse_size(budget) if isinstance(budget, str) else budget
    with Workers(1, launcher) as workers:
        study = Study(workers, workload, specs, batch_size, recipe or Recipe(), on_progress, on_comparison)
        study.inquire(device, capacity, reference, None, None)
        study.only_predict()
        if fit:
            study.expect_fits(confirm=False)
        study.measure()
        if fit:
            study.fit(confirm=False)
        return study.comparison


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
        evaluator = SetupEvaluator(workload, place.name, place.usable_bytes, workers, ProgressReporter(on_progress))
        now, suggestions = suggest_changes(TrainingSetup(spec, recipe, batch_size), kernels != "cpu", evaluator)
    return AdviceReport(
        environment=found.environment,
        workload=found.workload_info(workload, batch_size),
        recipe=recipe,
        optimizer=spec.text,
        device=place,
        margin=margin,
        now=now,
        suggestions=suggestions,
        evaluations=evaluator.evaluations,
        notes=[standing()] if kernels != "cpu" else [],
    )


def check_arguments(specs: list[OptimizerSpec], batch_size: int, recipe: Recipe, reference: str | None) -> None:
    """Refuse arguments that contradict themselves or one another.

    Raises:
        UsageError: the sentence says which.
    """
    texts = [spec.text for spec in specs]
    if not specs:
        raise UsageError("there is no optimizer to compare; give at least one, for example -o sm3 -o adam")
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise UsageError(f"the optimizer {twice!r} is given twice; keep one")
    if batch_size < 1:
        raise UsageError(f"the batch size is {batch_size}; it must be at least 1")
    if reference is not None and parse_optimizer(reference).text not in texts:
        raise UsageError(f"the reference {reference!r} is not among the optimizers compared: {', '.join(texts)}")
    if recipe.step_in_backward:
        for clash, used in (
            ("gradient accumulation", recipe.accumulate > 1),
            ("gradient clipping", recipe.clip_grad is not None),
            ("amp-fp16 (its scaler needs all gradients)", recipe.precision == "amp-fp16"),
        ):
            if used:
                raise UsageError(f"--step-in-backward drops each gradient at once and excludes {clash}; give up one")


def spec_of(model: str | Callable[..., Any]) -> str:
    """Return how a worker finds a model: a name as it is, a function by its file.

    Raises:
        UsageError: the function stands in no file, or not at its top level.
    """
    if isinstance(model, str):
        return model
    name = getattr(model, "__qualname__", type(model).__name__)
    try:
        file = inspect.getsourcefile(inspect.unwrap(model))
    except TypeError:
        file = None
    if file is None or not Path(file).exists() or not name.isidentifier():
        raise UsageError(f"workers cannot import {name!r}; define it at the top level of a file and pass that function")
    return f"{file}:{name}"
