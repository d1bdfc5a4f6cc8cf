"""Loads the workload that a `WorkloadSpec` names: a built-in, a user's file or module, or a Hugging Face model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from memprof.documents.comparison import Lengths
from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import UsageError, did_you_mean
from memprof.user_code import guard, kind
from memprof.workloads.builtin import BUILTINS
from memprof.workloads.importing import Imported, import_attr
from memprof.workloads.knobs import bind_knobs, check_ranges, fill_knobs

if TYPE_CHECKING:
    from memprof.workloads.workload import Workload


@dataclass(frozen=True)
class LoadedWorkload:
    """A workload that is ready to train.

    Attributes:
        name: The name that the user gave.
        knobs: All knobs with their values, including defaults.
        scale: The knob that "the largest model" varies, or None.
        workload: The model, batch and loss functions.
        lengths: What is known about the lengths of its samples.
        positions: The length of the longest sample that the model takes, or None if it is not known.
    """

    name: str
    knobs: dict[str, Any]
    scale: str | None
    workload: Workload
    lengths: Lengths = "fixed"
    positions: int | None = None


def load_workload(spec: WorkloadSpec) -> LoadedWorkload:
    """Load the workload that a spec names and set its knobs, without building the model.

    If a user's function has no return annotation, it has to be called to find out what it returns. If that builds a
    module, the first call of `workload.model()` returns this module, provided that building it again would give the
    same weights: set the same random seed before both calls.

    Args:
        spec: The model and its knobs.

    Returns:
        The workload.

    Raises:
        UsageError: What the spec names does not exist or cannot be trained, or the user's code raised an error.
    """
    if spec.model.startswith("hf:"):
        from memprof.workloads.huggingface.model import load_huggingface

        name, knobs, workload, positions = load_huggingface(spec)
        return LoadedWorkload(name, knobs, workload.scale, workload, positions=positions)
    if ":" in spec.model:
        return _load_user(spec)
    return _load_builtin(spec)


def _load_builtin(spec: WorkloadSpec) -> LoadedWorkload:
    builtin = BUILTINS.get(spec.model)
    if builtin is None:
        raise UsageError(_unknown(spec.model))
    _refuse_inputs(spec, "is a built-in and makes its own batches")
    knobs = fill_knobs(spec.model, builtin.knobs_for(spec.knobs), spec.knobs)
    check_ranges(spec.model, knobs)
    return LoadedWorkload(spec.model, knobs, builtin.scale, builtin.factory(**knobs))


def _unknown(model: str) -> str:
    if model.endswith(".py"):
        return (
            f"{model!r} names no attribute: write {model}:NAME, the function or class that builds the model, or run "
            f"the script as it is: memprof run {model}, and memprof run --vary batch=1:64 {model} "
            "--batch_size={batch} for its largest batch"
        )
    if "/" in model or "." in model:
        return f"{model!r} names no attribute: write {model}:NAME, the function or class that builds the model"
    return f"there is no built-in workload {model!r}{did_you_mean(model, list(BUILTINS))}"


def _refuse_inputs(spec: WorkloadSpec, reason: str) -> None:
    if spec.inputs or spec.target is not None:
        option = "--input" if spec.inputs else "--target"
        raise UsageError(f"{spec.model} {reason}: drop {option}")


def _load_user(spec: WorkloadSpec) -> LoadedWorkload:
    import torch  # noqa: F401 -- before the user's file, so that a torch.py beside that file cannot replace it

    from memprof.workloads.workload import Workload

    found = import_attr(spec.model)
    value, knobs = _resolve(spec, found)
    if isinstance(value, Workload):
        _refuse_inputs(spec, "has its own batches")
        workload = value
    else:
        from memprof.workloads.plain_module import plain_workload

        workload = plain_workload(spec, value, knobs, found)
    lengths = _lengths(spec, workload)
    workload = _guarded(spec, _at_longest(spec, workload), found)
    return LoadedWorkload(spec.model, knobs, _scale(spec, workload, knobs), workload, lengths)


def _lengths(spec: WorkloadSpec, workload: Workload) -> Lengths:
    if spec.inputs:
        return "fixed"
    return "unknown" if workload.longest_batch is None else "longest_batch"


def _at_longest(spec: WorkloadSpec, workload: Workload) -> Workload:
    if not spec.longest or workload.longest_batch is None:
        return workload
    return replace(workload, batch=workload.longest_batch)


def _resolve(spec: WorkloadSpec, found: Imported) -> tuple[Any, dict[str, Any]]:
    """Return the Workload or the function that builds the module, and the knobs."""
    from torch import nn

    from memprof.workloads.module_copies import SharedModule, module_or_workload
    from memprof.workloads.workload import Workload

    if isinstance(found.value, (Workload, nn.Module)):
        if spec.knobs:
            raise UsageError(f"{spec.model} is already built and takes no knobs: drop --set {next(iter(spec.knobs))}")
        value = found.value
        return (value if isinstance(value, Workload) else SharedModule(spec.model, value)), {}
    if not callable(found.value):
        raise UsageError(
            f"{spec.model} is {kind(found.value)}; name a Workload, an nn.Module, or a function or class that gives one"
        )
    knobs = bind_knobs(spec.model, found.value, spec.knobs)
    return module_or_workload(spec.model, found.value, knobs, found.file), knobs


def _scale(spec: WorkloadSpec, workload: Workload, knobs: Mapping[str, Any]) -> str | None:
    if workload.scale is not None and workload.scale not in knobs:
        hint = did_you_mean(workload.scale, list(knobs))
        raise UsageError(f"{spec.model} names the scale knob {workload.scale!r}, which it does not take{hint}")
    return workload.scale


def _guarded(spec: WorkloadSpec, workload: Workload, found: Imported) -> Workload:
    return replace(
        workload,
        model=guard(f"building the model of {spec.model}", workload.model, found.file),
        batch=guard(f"making a batch for {spec.model}", workload.batch, found.file),
    )
