"""The Python API: `memprof.compare`, `memprof.predict`, `memprof.fit` and `memprof.advise`.

All four check and parse the arguments that they share in `_prepare`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memprof.comparison import ComparisonBuilder
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
    """Train a workload with each optimizer, each in a fresh process, and report how much memory each training takes.

    Args:
        model: A built-in name, `path/to/file.py:attr`, `package.module:attr`, `hf:PATH_OR_ID`, or a function or
            class that is defined at the top level of a file (the worker processes import it from there).
        batch_size: The number of samples in each micro-batch.
        knobs: Values for keywords of the workload.
        inputs: For a plain module, the tensors that it takes, such as `float32[B,3,224,224]`.
        target: For a plain module, the tensor that its loss compares the output with, such as `int64[B]<1000`.
        optimizers: Optimizer specs such as `sm3,momentum=0.9`.
        device: `auto`, `cpu`, `cuda` or `cuda:N` trains on that device. The name or the size of a simulated GPU
            (`rtx-4090`, `24GiB`) trains nothing, and the source of every run is `predicted`.
        recipe: How the workload is trained; the default is `Recipe()`.
        budget: The capacity for the largest batch and model, as a size such as `"24GiB"` or in bytes. The default
            is the device's memory.
        fit: Also find the largest batch and the largest model. The search uses the workload's `longest_batch` if
            there is one.
        confirm: Confirm the largest batch and model by training with them.
        validate: Also predict every trial, and record how far each predicted figure is off (`Run.validation`).
        reference: The optimizer spec that the others are compared with.
        command: The command line to record in the result.
        trace_folder: An existing folder. Each run's whole trace is written there, in the formats of PyTorch's memory
            viewer and of Perfetto.
        on_progress: A function that is called with every progress event.
        on_comparison: A function that is called with the unfinished comparison after every finished trial.
        launcher: The fork server to use, so that several calls can share one. By default the call starts its own.

    Returns:
        The comparison, with one run for each optimizer.

    Raises:
        UsageError: An argument, the workload or the recipe is wrong.
        MemprofError: Something failed that does not depend on the optimizer.
    """
    prepared = _prepare(model, optimizers, batch_size, knobs, inputs, target, recipe, budget, reference=reference)
    with Workers(1, launcher) as workers:
        builder = prepared.builder(workers, on_progress, on_comparison)
        trains = "--confirm" if confirm else "--validate" if validate else None
        builder.start(device, prepared.capacity_bytes, reference, command, trains)
        if fit:
            builder.expect_fits(confirm)
        builder.measure(str(Path(trace_folder).resolve()) if trace_folder is not None else None)
        if validate:
            builder.validate()
        if fit:
            builder.fit(confirm)
        return builder.comparison


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
    """Predict how much memory training takes with each optimizer, on fake tensors: nothing is trained.

    A prediction needs no GPU and allocates neither weights nor batches. Every run has the source `predicted` and
    states what the prediction rests on (`Run.confidence`); a run for a GPU also has upper bounds.

    Args:
        model: As for `compare`.
        device: A GPU of the catalog (`rtx-4090`), a size (`24GiB`), or one of this machine's devices (`auto`, `cpu`,
            `cuda:N`), which is then predicted for and not used.
        batch_size: The number of samples in each micro-batch.
        knobs: Values for keywords of the workload.
        inputs: For a plain module, the tensors that it takes, such as `float32[B,3,224,224]`.
        target: For a plain module, the tensor that its loss compares the output with, such as `int64[B]<1000`.
        optimizers: Optimizer specs such as `sm3,momentum=0.9`.
        recipe: How the workload is trained; the default is `Recipe()`.
        budget: The capacity for the largest batch and model, as a size such as `"24GiB"` or in bytes. The default
            is the device's memory.
        fit: Also predict the largest batch and the largest model.
        reference: The optimizer spec that the others are compared with.
        on_progress: A function that is called with every progress event.
        on_comparison: A function that is called with the unfinished comparison after every finished trial.
        launcher: The fork server to use, so that several calls can share one. By default the call starts its own.

    Returns:
        The comparison, with one run for each optimizer.

    Raises:
        UsageError: An argument, the workload or the recipe is wrong, or the model makes a decision that depends on
            the values of the data.
        MemprofError: Something failed that does not depend on the optimizer.
    """
    prepared = _prepare(model, optimizers, batch_size, knobs, inputs, target, recipe, budget, reference=reference)
    with Workers(1, launcher) as workers:
        builder = prepared.builder(workers, on_progress, on_comparison)
        builder.start(device, prepared.capacity_bytes, reference, None, None)
        builder.only_predict()
        if fit:
            builder.expect_fits(confirm=False)
        builder.measure()
        if fit:
            builder.fit(confirm=False)
        return builder.comparison


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

    The search uses predictions, and it always evaluates both the answer and the next value. On a device of this
    machine both values are also trained, in fresh processes whose memory is capped, for three steps each, so that the
    optimizer state exists. The batches come from the workload's `longest_batch` if there is one, so that the answer
    holds for every batch of that size.

    Args:
        model: As for `compare`.
        vary: `KNOB`, `KNOB=LO:HI` or `KNOB=LO:HI:STEP`. The knob is `batch_size` or an integer knob of the workload.
        optimizers: Optimizer specs such as `sm3,momentum=0.9`.
        devices: The devices to fill: `auto`, `cpu`, `cuda:N`, a GPU to predict for (`rtx-4090`), or a size (`24GiB`).
        batch_size: The number of samples in each micro-batch if another knob is varied; otherwise the batch size
            with which the search begins.
        knobs: Values for keywords of the workload.
        inputs: For a plain module, the tensors that it takes, such as `float32[B,3,224,224]`.
        target: For a plain module, the tensor that its loss compares the output with, such as `int64[B]<1000`.
        recipe: How the workload is trained; the default is `Recipe()`.
        global_batch: The number of samples in one optimizer step, over all ranks and micro-batches. The search then
            considers only batch sizes that divide it exactly, each with the number of micro-batches that it needs.
            Without it, `recipe.accumulate` stays the same for every batch size.
        budget: The capacity to use in place of the devices' memory, as a size such as `"24GiB"` or in bytes. It
            imitates a smaller card on a larger one.
        margin: The memory to leave free, as a share such as `5%` or as a size.
        confirm: Confirm the answers by training, on the devices of this machine.
        command: The command line to record in the result.
        on_progress: A function that is called with every progress event.
        on_report: A function that is called with the unfinished report after every finished cell.
        launcher: The fork server to use, so that several calls can share one. By default the call starts its own.

    Returns:
        The report, with one cell for each optimizer and device.

    Raises:
        UsageError: An argument, the workload or the recipe is wrong.
        MemprofError: Something failed that does not depend on the optimizer.
    """
    prepared = _prepare(model, optimizers, batch_size, knobs, inputs, target, recipe, budget, longest=True)
    if not devices:
        raise UsageError("there is no device to fill; give at least one, for example --device rtx-4090")
    varied = parse_vary(vary)
    if global_batch is not None:
        varied = with_global_batch(varied, global_batch, prepared.recipe)
    request = FitRequest(
        workload=prepared.workload,
        optimizers=prepared.specs,
        devices=list(devices),
        vary=varied,
        batch_size=batch_size,
        recipe=prepared.recipe,
        budget=prepared.capacity_bytes,
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
    """Suggest changes that make a training fit: each with the memory that it saves and how much it disturbs.

    Everything is predicted and nothing is trained. The suggestions come from other optimizers and implementations,
    mixed precision, activation checkpointing, smaller micro-batches, another moment at which gradients are zeroed, the
    optimizer step inside the backward pass, and expandable segments. They are tried one by one, in pairs and in
    threes.

    Args:
        model: As for `compare`.
        optimizer: The optimizer spec in use.
        device: `auto`, `cpu`, `cuda:N`, a GPU to predict for (`rtx-4090`), or a size (`24GiB`).
        batch_size: The number of samples in each micro-batch.
        knobs: Values for keywords of the workload.
        inputs: For a plain module, the tensors that it takes, such as `float32[B,3,224,224]`.
        target: For a plain module, the tensor that its loss compares the output with, such as `int64[B]<1000`.
        recipe: How the workload is trained now; the default is `Recipe()`.
        budget: The capacity to use in place of the device's memory, as a size such as `"24GiB"` or in bytes.
        margin: The memory to leave free, as a share such as `5%` or as a size.
        command: The command line to record in the result.
        on_progress: A function that is called with every progress event.
        launcher: The fork server to use, so that several calls can share one. By default the call starts its own.

    Returns:
        The report: what the training takes now, and the suggestions.

    Raises:
        UsageError: An argument, the workload or the recipe is wrong.
        MemprofError: The training cannot be predicted.
    """
    prepared = _prepare(model, [optimizer], batch_size, knobs, inputs, target, recipe, budget, longest=True)
    (spec,), recipe, workload = prepared.specs, prepared.recipe, prepared.workload
    with Workers(2, launcher) as workers:
        inquiry = Inquiry(
            workload=workload, optimizers=[spec], devices=[device], world_size=recipe.world_size, command=command
        )
        found = workers.launchers[0].run(inquiry)
        assert isinstance(found, Findings)
        place, kernels = device_of(found.device, prepared.capacity_bytes, margin), found.device.kernels
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


@dataclass(frozen=True)
class _Prepared:
    """The arguments that `compare`, `predict`, `fit` and `advise` share, checked and parsed.

    Attributes:
        specs: The optimizer specs, in the order given.
        workload: What is trained.
        batch_size: The number of samples in each micro-batch.
        recipe: How it is trained.
        capacity_bytes: The capacity that replaces the device's memory, or None if the device's memory counts.
    """

    specs: list[OptimizerSpec]
    workload: WorkloadSpec
    batch_size: int
    recipe: Recipe
    capacity_bytes: int | None

    def builder(
        self, workers: Workers, on_progress: OnProgress | None, on_comparison: OnComparison | None
    ) -> ComparisonBuilder:
        return ComparisonBuilder(
            workers, self.workload, self.specs, self.batch_size, self.recipe, on_progress, on_comparison
        )


def _prepare(
    model: str | Callable[..., Any],
    optimizers: Sequence[str],
    batch_size: int,
    knobs: Mapping[str, KnobValue] | None,
    inputs: Sequence[str],
    target: str | None,
    recipe: Recipe | None,
    budget: str | int | None,
    *,
    reference: str | None = None,
    longest: bool = False,
) -> _Prepared:
    """Check and parse the arguments that `compare`, `predict`, `fit` and `advise` share.

    `longest` asks for the workload's `longest_batch` in place of its ordinary batches.
    """
    specs = [parse_optimizer(text) for text in optimizers]
    recipe = recipe or Recipe()
    _check_arguments(specs, batch_size, recipe, reference)
    workload = WorkloadSpec(
        model=_model_path(model), knobs=dict(knobs or {}), inputs=tuple(inputs), target=target, longest=longest
    )
    capacity_bytes = parse_size(budget) if isinstance(budget, str) else budget
    if capacity_bytes is not None and capacity_bytes < 1:
        raise UsageError(f"the budget is {budget}; it must be more than nothing")
    return _Prepared(specs, workload, batch_size, recipe, capacity_bytes)


def _check_arguments(specs: list[OptimizerSpec], batch_size: int, recipe: Recipe, reference: str | None) -> None:
    """Raise a UsageError if an argument is impossible or contradicts another one."""
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


def _model_path(model: str | Callable[..., Any]) -> str:
    """Return the text by which a worker finds the model: a name stays as it is, a function becomes `file:name`."""
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
