"""The optimizers that have short names, and functions that build an optimizer from a spec.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from memprof.documents.optimizer_spec import OptimizerSpec
from memprof.errors import UsageError, did_you_mean
from memprof.optimizers.spec_options import constructor_arguments, takes_names
from memprof.user_code import is_out_of_memory
from memprof.workloads.importing import import_attr

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    NamedParameter: TypeAlias = tuple[str, nn.Parameter]


class ClosureError(UsageError):
    """An optimizer evaluates the loss itself, several times per step. Other optimizers can still be compared."""


@dataclass(frozen=True)
class KnownOptimizer:
    """An optimizer that has a short name.

    Attributes:
        name: The name in a spec.
        class_path: The import path of the class, as `module:Class`.
        description: A description in one line.
        state: The size of its state in float32 with default options, as a short formula in bytes. A matrix has the
            shape m x n.
        source: The package that it comes from, with the oldest version if that matters.
        refusal: Why memprof cannot train with it, in one sentence; None if it can.
    """

    name: str
    class_path: str
    description: str
    state: str
    source: str = "torch.optim"
    refusal: str | None = None


_SM3_STATE = "4(m+n) B per m x n matrix; +4 B/param with momentum"
_CLOSURE = (
    "lbfgs evaluates the loss several times per step through a closure, so memprof cannot measure its step "
    "as one training step; choose another optimizer"
)
KNOWN_OPTIMIZERS: dict[str, KnownOptimizer] = {
    known.name: known
    for known in (
        KnownOptimizer("sm3", "sm3:SM3", "SM3-II: Adagrad with row and column accumulators", _SM3_STATE, "sm3"),
        KnownOptimizer("adam", "torch.optim:Adam", "Adam", "8 B/param; 12 with amsgrad"),
        KnownOptimizer("adamw", "torch.optim:AdamW", "Adam with decoupled decay", "8 B/param; 12 with amsgrad"),
        KnownOptimizer("adagrad", "torch.optim:Adagrad", "Adagrad, state made at construction", "4 B/param"),
        KnownOptimizer("adadelta", "torch.optim:Adadelta", "Adadelta", "8 B/param"),
        KnownOptimizer(
            "adafactor",
            "torch.optim:Adafactor",
            "factors the last two dimensions only: a 1x1 convolution costs 8 B/param",
            "4(m+n) B per m x n matrix",
        ),
        KnownOptimizer("adamax", "torch.optim:Adamax", "Adam with the infinity norm", "8 B/param"),
        KnownOptimizer("asgd", "torch.optim:ASGD", "averaged SGD", "4 B/param"),
        KnownOptimizer("lbfgs", "torch.optim:LBFGS", "L-BFGS, needs a closure", "up to 800 B/param", refusal=_CLOSURE),
        KnownOptimizer("muon", "torch.optim:Muon", "Muon, 2-D only", "4 B/param", "torch.optim (torch >= 2.9)"),
        KnownOptimizer("nadam", "torch.optim:NAdam", "Adam with Nesterov momentum", "8 B/param"),
        KnownOptimizer("radam", "torch.optim:RAdam", "rectified Adam", "8 B/param"),
        KnownOptimizer("rmsprop", "torch.optim:RMSprop", "RMSprop", "4 B/param; +4 with momentum, +4 centered"),
        KnownOptimizer("rprop", "torch.optim:Rprop", "resilient backpropagation", "8 B/param"),
        KnownOptimizer("sgd", "torch.optim:SGD", "SGD", "0; 4 B/param with momentum"),
        KnownOptimizer("sparseadam", "torch.optim:SparseAdam", "Adam, sparse gradients only", "8 B/param"),
    )
}


def find_known(spec: OptimizerSpec) -> KnownOptimizer | None:
    """Return the known optimizer that a spec names, or None for an import path. It does not import torch.

    Raises:
        UsageError: The name is unknown, or memprof cannot train with that optimizer.
    """
    if spec.is_import_path:
        return None
    known = KNOWN_OPTIMIZERS.get(spec.name)
    if known is None:
        hint = did_you_mean(spec.name, list(KNOWN_OPTIMIZERS))
        raise UsageError(f"unknown optimizer {spec.name!r} (a class of your own is pkg.mod:Class){hint}")
    if known.refusal:
        raise ClosureError(known.refusal)
    return known


def resolve_class(spec: OptimizerSpec) -> Callable[..., Optimizer]:
    """Return the optimizer's class, or the function that builds it if the import path names a function.

    Raises:
        UsageError: The path does not name an optimizer, it cannot be imported, or it is L-BFGS.
    """
    known = find_known(spec)
    path = known.class_path if known else spec.name
    if known and known.name == "muon":
        _require_muon()
    try:
        target = import_attr(path).value
    except UsageError as error:
        raise UsageError(f"optimizer {spec.text!r}: {error}") from error
    if not callable(target):
        raise UsageError(f"optimizer {spec.text!r}: {path} is a {type(target).__name__}, not an optimizer class")
    _refuse_class(target, spec)
    return target  # type: ignore[no-any-return]


def check_options(spec: OptimizerSpec) -> None:
    """Check the options of a spec against the constructor, without building anything.

    Raises:
        UsageError: An option is unknown, has a value of the wrong type, is missing, or is `params`.
    """
    constructor_arguments(resolve_class(spec), spec)


def build_optimizer(spec: OptimizerSpec, named_parameters: Iterable[NamedParameter]) -> Optimizer:
    """Build the optimizer for the parameters that require a gradient.

    A constructor that requires `lr` gets 1e-3, the default of torch's Adam. A constructor whose first argument is
    called `named_parameters` gets the names as well. An optimizer that has a train mode, as schedule-free optimizers
    do, is put into that mode.

    Args:
        spec: The optimizer spec.
        named_parameters: The parameters, as `model.named_parameters()` gives them. Duplicates are removed.

    Returns:
        The optimizer.

    Raises:
        UsageError: The spec is wrong, no parameter requires a gradient, or the constructor raised an error.
    """
    factory = resolve_class(spec)
    arguments = constructor_arguments(factory, spec)
    named = _trainable(named_parameters)
    if not named:
        raise UsageError("the model has no parameter that requires a gradient, so there is nothing to optimize")
    _refuse_shapes(factory, spec, named)
    optimizer = _require_optimizer(_construct(factory, spec, named, arguments), spec)
    train = getattr(optimizer, "train", None)
    if callable(train):
        train()
    return optimizer


def _trainable(named_parameters: Iterable[NamedParameter]) -> list[NamedParameter]:
    unique: dict[int, NamedParameter] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            unique.setdefault(id(parameter), (name, parameter))
    return list(unique.values())


def _construct(
    factory: Callable[..., Optimizer],
    spec: OptimizerSpec,
    named: list[NamedParameter],
    arguments: dict[str, object],
) -> Optimizer:
    parameters = named if takes_names(factory) else [parameter for _, parameter in named]
    try:
        return factory(parameters, **arguments)
    except Exception as error:
        if is_out_of_memory(error):  # some optimizers allocate their state here, so this is a result and not a mistake
            raise
        message = " ".join(str(error).split()) or "no reason given"
        raise UsageError(f"optimizer {spec.text!r} refused: {type(error).__name__}: {message}") from error


def _require_optimizer(optimizer: object, spec: OptimizerSpec) -> Optimizer:
    from torch.optim import Optimizer

    if not isinstance(optimizer, Optimizer):
        kind = type(optimizer).__name__
        raise UsageError(f"optimizer {spec.text!r} returned a {kind}; it must return a torch.optim.Optimizer")
    return optimizer


def _require_muon() -> None:
    import torch

    if not hasattr(torch.optim, "Muon"):
        raise UsageError(f"muon came with torch 2.9, and this is torch {torch.__version__}; upgrade torch")


def _refuse_class(factory: object, spec: OptimizerSpec) -> None:
    from torch.optim import LBFGS, Optimizer

    if not isinstance(factory, type):
        return  # it is a function, whose return value is checked when it is called
    if not issubclass(factory, Optimizer):
        raise UsageError(f"optimizer {spec.text!r}: {factory.__name__} is not a subclass of torch.optim.Optimizer")
    if issubclass(factory, LBFGS):
        raise ClosureError(_CLOSURE)


def _refuse_shapes(factory: object, spec: OptimizerSpec, named: list[NamedParameter]) -> None:
    import torch

    if factory is not getattr(torch.optim, "Muon", None):
        return
    others = [(name, parameter.shape) for name, parameter in named if parameter.ndim != 2]
    if others:
        name, shape = others[0][0], "x".join(map(str, others[0][1])) or "a scalar"
        more = f", nor are {len(others) - 1} more" if len(others) > 1 else ""
        raise UsageError(
            f"optimizer {spec.text!r} updates matrices only, and {name!r} ({shape}) is not one{more}; choose "
            "another optimizer, or the import path of a class of your own that gives these to another"
        )
