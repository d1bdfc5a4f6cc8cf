"""Notes which optimizers a script constructs, and replaces them with a substitute.

`AdamW(model.parameters(), lr=1e-3)` in the script then returns, for example, an SM3 that trains the same parameters in
the same groups at the script's learning rates. `isinstance(optimizer, AdamW)` stays true, so that schedulers, scalers
and trainers accept it. It is an instance of SM3 as well.
"""

from __future__ import annotations

import linecache
import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer

from memprof.documents.script import Substitution
from memprof.errors import MemprofError, UsageError
from memprof.optimizers.registry import resolve_class
from memprof.optimizers.spec_options import constructor_arguments, takes_names
from memprof.scripts.places import caller, place_of
from memprof.scripts.stopping import ScriptRefused
from memprof.user_code import is_out_of_memory

_ASSIGNED = re.compile(r"\s*(?:self\.)?([A-Za-z_][\w.]*)\s*(?::[^=]+)?=[^=]")
_SHARDING = ("ZeroRedundancyOptimizer",)
# The keys of a parameter group that mean the same to every optimizer. Other options may share a name and yet differ.
_OF_ALL = ("params", "param_names", "lr")


class OptimizerRefusedError(MemprofError):
    """The substitute does not accept the parameters of the script. Another optimizer may accept them."""


class ScriptOptimizers:
    """Notes the optimizers that the script constructs, and puts a substitute in their place.

    Args:
        substitution: The substitution that the user asked for.

    Attributes:
        constructed: The script's own optimizers in the order of construction, each as `AdamW (train.py:12)`.
        replaced: The number of optimizers that were replaced.
        made: The optimizers that the script uses, its own or substitutes, as long as they live.
    """

    def __init__(self, substitution: Substitution) -> None:
        self._substitution = substitution
        self.constructed: list[str] = []
        self.replaced = 0
        self.made: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._building = False

    @contextmanager
    def substituted(self) -> Iterator[None]:
        """Replace the optimizers that are constructed within the `with` block."""
        # `Optimizer` inherits `object.__new__`. Once that has been replaced, it no longer accepts arguments, so a plain
        # function is left behind.
        Optimizer.__new__ = self._new  # type: ignore[method-assign]
        try:
            yield
        finally:
            Optimizer.__new__ = _plain_new  # type: ignore[method-assign]

    def check(self) -> None:
        """Refuse a substitution whose place matches no optimizer of the script.

        Raises:
            UsageError: Nothing was replaced although the user asked for a substitute.
        """
        if self._substitution.is_as_is or self.replaced or not self.constructed:
            return
        there = "; ".join(f"{number} is {text}" for number, text in enumerate(self.constructed))
        spec = self._substitution.spec.text
        raise UsageError(f"-o {spec}: no optimizer of the script is {self._substitution.place}: {there}")

    def _new(self, cls: type[Any], *args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs.get("params", kwargs.get("optimizer"))
        # This is a wrapper around another optimizer, like that of accelerate, or around one that it constructs itself.
        if self._building or isinstance(given, Optimizer) or cls.__name__ in _SHARDING:
            return object.__new__(cls)
        frame = caller()
        number = len(self.constructed)
        self.constructed.append(f"{cls.__name__} ({place_of(frame)})" if frame is not None else cls.__name__)
        if not self._is_meant(number, frame):
            made = object.__new__(cls)
        else:
            self.replaced += 1
            self._building = True
            try:
                made = self._substitute(cls, given, kwargs.get("lr", args[1] if len(args) > 1 else None))
            finally:
                self._building = False
        self.made.add(made)
        return made

    def _is_meant(self, number: int, frame: Any) -> bool:
        place = self._substitution.place
        if self._substitution.is_as_is:
            return False
        if place is None or isinstance(place, int):
            return place in (None, number)
        if frame is None:
            return False
        found = _ASSIGNED.match(linecache.getline(frame.f_code.co_filename, frame.f_lineno))
        return found is not None and found[1] == place

    def _substitute(self, cls: type[Any], given: Any, lr: Any) -> Any:
        spec = self._substitution.spec
        factory = resolve_class(spec)
        arguments = constructor_arguments(factory, spec)
        if "lr" not in spec.options and isinstance(lr, (float, int, torch.Tensor)) and _takes(factory, "lr"):
            arguments["lr"] = lr
        try:
            made = factory(_groups(given, "lr" in spec.options, takes_names(factory)), **arguments)
        except MemprofError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            message = " ".join(str(error).split()) or "no reason given"
            text = f"optimizer {spec.text!r} refused: {type(error).__name__}: {message}"
            raise ScriptRefused(OptimizerRefusedError(text)) from error
        made.__class__ = _disguised(type(made), cls)
        return made


def _plain_new(cls: type[Any], *args: Any, **kwargs: Any) -> Any:
    return object.__new__(cls)


def _takes(factory: Callable[..., Any], name: str) -> bool:
    import inspect

    try:
        return name in inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return False


def _groups(given: Any, own_rate: bool, named: bool) -> list[Any]:
    """Return the script's parameters and groups, with only those keys of a group that every optimizer understands."""
    items = list(given)
    if not items or not isinstance(items[0], dict):
        trained = [item for item in items if _tensor_of(item).requires_grad]
        return [(f"parameter_{n}", item) for n, item in enumerate(trained)] if named and _bare(trained) else trained
    kept = [key for key in _OF_ALL if not (own_rate and key == "lr")]
    return [{key: value for key, value in group.items() if key in kept} for group in items]


def _bare(items: list[Any]) -> bool:
    return bool(items) and isinstance(items[0], torch.Tensor)


def _tensor_of(item: Any) -> torch.Tensor:
    tensor: torch.Tensor = item[1] if isinstance(item, tuple) else item
    return tensor


def _disguised(real: type[Any], script: type[Any]) -> type[Any]:
    """Return a subclass of the substitute's class that `isinstance` takes for the script's class as well."""

    def initialised(self: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: Python calls it a second time if the substitute is an instance of the script's class."""

    names = {
        "__init__": initialised,
        "__class__": property(lambda self: script),
        "__module__": real.__module__,
        "__qualname__": real.__qualname__,
    }
    return type(real.__name__, (real,), names)
