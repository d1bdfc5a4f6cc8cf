"""Makes the batch and the loss of a plain `nn.Module`, from `--input` and `--target` or from functions in its file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import UsageError
from memprof.user_code import kind
from memprof.workloads.importing import Imported
from memprof.workloads.tensor_grammar import TensorSpec, parse_inputs, parse_tensor
from memprof.workloads.workload import Workload


def plain_workload(
    spec: WorkloadSpec, model: Callable[[], nn.Module], knobs: Mapping[str, Any], found: Imported
) -> Workload:
    """Return the workload of a plain module.

    The batch comes from the spec's inputs. If there are none, it comes from `make_batch(batch_size)` and
    `longest_batch(batch_size)` in the model's own file. The loss comes from `loss(model, batch)` in that file, or from
    `default_loss` if there is none.

    Args:
        spec: The model, with its inputs and target.
        model: A function that builds the module.
        knobs: The knobs of the model.
        found: The imported model, with its file.

    Returns:
        The workload.

    Raises:
        UsageError: There are neither inputs nor `make_batch`, or one of the functions is not a function.
    """
    loss = found.beside("loss")
    if not callable(loss):  # a script that trains when it is imported leaves its last loss there
        loss = None
    if loss is not None and not inspect.isroutine(loss):
        raise UsageError(f"loss beside {spec.model} must be a function loss(model, batch), not {kind(loss)}")
    loss = loss or partial(default_loss, classes=_classes(spec))
    if spec.inputs:
        return Workload(model=model, batch=input_batch(spec), loss=loss)
    longest = None if found.beside("longest_batch") is None else _beside(spec, knobs, found, "longest_batch")
    return Workload(model=model, batch=_made_batch(spec, knobs, found), loss=loss, longest_batch=longest)


def _classes(spec: WorkloadSpec) -> int | None:
    return None if spec.target is None else parse_tensor(spec.target, "--target").below


def input_batch(spec: WorkloadSpec) -> Callable[[int], dict[str, Any]]:
    """Return a batch function that draws `{"args": (...), "kwargs": {...}, "target": ...}` from the spec's inputs.

    Raises:
        UsageError: An input or the target does not follow the grammar.
    """
    inputs = parse_inputs(spec.inputs)
    target = None if spec.target is None else parse_tensor(spec.target, "--target")
    if target is not None and target.name is not None:
        raise UsageError(f"--target goes to the loss, not to the model: drop {target.name}=")

    def batch(batch_size: int) -> dict[str, Any]:
        drawn: dict[str, Any] = {
            "args": tuple(one.draw(batch_size) for one in inputs if one.name is None),
            "kwargs": {one.name: one.draw(batch_size) for one in inputs if one.name is not None},
        }
        return drawn if target is None else {**drawn, "target": target.draw(batch_size)}

    return batch


def _made_batch(spec: WorkloadSpec, knobs: Mapping[str, Any], found: Imported) -> Callable[[int], Any]:
    if found.beside("make_batch") is None:
        raise UsageError(
            f"{spec.model} is a plain module: say what it takes with --input 'float32[B,3,224,224]' --target "
            "'int64[B]<1000', or write make_batch(batch_size) beside it"
        )
    if spec.target is not None:
        raise UsageError(f"--target goes with --input; {spec.model} has make_batch beside it, which gives the target")
    return _beside(spec, knobs, found, "make_batch")


def _beside(spec: WorkloadSpec, knobs: Mapping[str, Any], found: Imported, name: str) -> Callable[[int], Any]:
    """Return a batch function of the model's file. Keywords that are also knobs of the model get the knobs' values."""
    make = found.beside(name)
    if not callable(make):
        raise UsageError(f"{name} beside {spec.model} must be a function {name}(batch_size), not {kind(make)}")
    parameters = list(inspect.signature(make).parameters)
    if not parameters:
        raise UsageError(f"{name} beside {spec.model} takes nothing; it must take the batch size")
    shared = {name: knobs[name] for name in parameters[1:] if name in knobs}
    return lambda batch_size: make(batch_size, **shared)


def default_loss(model: nn.Module, batch: Any, classes: int | None = None) -> Tensor:
    """Call the model on a batch and return its loss.

    The batch comes from `input_batch` or from `make_batch`. The latter gives a tensor, a dict of the model's keywords
    that may also hold the `target`, or a pair of inputs and target. The loss is the output's `.loss` or `["loss"]`, the
    output itself if it is a scalar, the only scalar of a tuple such as `(logits, loss)`, and otherwise
    `compare(output, target)`.

    Args:
        model: A plain module.
        batch: One batch for it.
        classes: The number of classes of the target, or None if it is not known.

    Returns:
        The loss, a scalar tensor.

    Raises:
        UsageError: The output has no loss, and there is no target to compare it with.
    """
    args, kwargs, target = _unpack(batch)
    output = model(*args, **kwargs)
    loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    if isinstance(loss, Tensor):
        return loss
    if isinstance(output, (tuple, list)):
        scalars = [one for one in output if isinstance(one, Tensor) and one.dim() == 0 and one.requires_grad]
        if len(scalars) == 1:
            return scalars[0]
    output = _logits(output)
    if output.dim() == 0:
        return output
    if target is None:
        raise UsageError(
            f"the model gives {_shape(output)} and no loss: add --target 'int64[B]<10', or write "
            "loss(model, batch) beside it"
        )
    return compare(output, target, classes)


def _unpack(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Tensor | None]:
    """Return the positional inputs, the keyword inputs and the target of a batch."""
    if isinstance(batch, dict) and batch.keys() <= {"args", "kwargs", "target"} and "args" in batch:
        return batch["args"], batch["kwargs"], batch.get("target")
    if isinstance(batch, dict):
        return (), {name: value for name, value in batch.items() if name != "target"}, batch.get("target")
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        inputs, target = batch
        args, kwargs, _ = _unpack(inputs) if isinstance(inputs, dict) else (inputs, {}, None)
        return (tuple(args) if isinstance(args, (tuple, list)) else (args,)), kwargs, target
    if isinstance(batch, Tensor):
        return (batch,), {}, None
    raise UsageError(
        f"make_batch gives {kind(batch)}; it must give a tensor, a dict of keywords or a pair (inputs, "
        "target), or write loss(model, batch) beside it"
    )


def _logits(output: Any) -> Tensor:
    """Return the tensor of the output from which a loss can be computed."""
    if isinstance(output, dict):
        output = output.get("logits", output)
    output = getattr(output, "logits", output)
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if isinstance(output, Tensor):
        return output
    raise UsageError(f"the model gives {kind(output)}, not a tensor: write loss(model, batch) beside it")


def compare(output: Tensor, target: Tensor, classes: int | None = None) -> Tensor:
    """Return the mean squared error for a floating-point target of the output's shape, otherwise the cross-entropy.

    The classes are the last dimension of the output, as in language models ([B, T, C] with a target [B, T]), or the
    second one, as in `F.cross_entropy` ([B, C, ...] with [B, ...]).

    Args:
        output: The output of the model.
        target: The target.
        classes: The number of classes of the target, or None if it is not known.

    Returns:
        The loss, a scalar tensor.

    Raises:
        UsageError: The shapes or dtypes fit neither loss, or the output has fewer classes than the target.
    """
    if target.is_floating_point() and target.shape == output.shape:
        return F.mse_loss(output, target)
    if not target.is_floating_point() and not target.is_complex():
        if output.shape[:-1] == target.shape:
            _check_classes(output.shape[-1], classes)
            return F.cross_entropy(output.flatten(0, -2), target.flatten().long())
        if output.shape[:1] + output.shape[2:] == target.shape:
            _check_classes(output.shape[1], classes)
            return F.cross_entropy(output, target.long())
    raise UsageError(
        f"the output {_shape(output)} and the target {_shape(target)} fit neither cross-entropy nor a "
        "squared error: change --target, or write loss(model, batch) beside the model"
    )


def _check_classes(there: int, drawn: int | None) -> None:
    if drawn is not None and drawn > there:
        raise UsageError(f"the model tells {there} classes apart, and --target draws from {drawn}: write <{there}")


def _shape(tensor: Tensor) -> str:
    return str(TensorSpec(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)))
