"""Provides a user's module: from a function or class that is called for each trial, or from one existing object."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import torch
from torch import nn

from memprof.errors import UsageError
from memprof.user_code import guard, kind
from memprof.workloads.workload import Workload

ModuleSource = Callable[[], nn.Module]


def module_or_workload(
    name: str, factory: Callable[..., Any], knobs: Mapping[str, Any], file: str | None
) -> Workload | ModuleSource:
    """Return the Workload that a factory returns, or a function that builds its module.

    The factory is called only if neither its class nor its return annotation says that it gives a module.

    Args:
        name: The name of the factory, for error messages.
        factory: A function or class.
        knobs: The keywords to call it with.
        file: The file of the factory, for error messages.

    Returns:
        The Workload, or a function that builds the module.

    Raises:
        UsageError: The factory raised an error, or returned something else.
    """

    def build() -> Any:
        return factory(**knobs)

    def build_module() -> nn.Module:
        return _module(name, build())

    if _gives_module(factory):
        return build_module
    before = torch.get_rng_state()
    value = guard(name, build, file)()
    if isinstance(value, Workload):
        return value
    return _PrebuiltModule(_module(name, value), build_module, before)


def _gives_module(factory: Callable[..., Any]) -> bool:
    if inspect.isclass(factory):
        return issubclass(factory, nn.Module)
    try:
        kind = get_type_hints(factory).get("return")
    except Exception:  # an annotation that cannot be evaluated says nothing
        return False
    return inspect.isclass(kind) and issubclass(kind, nn.Module)


def _module(name: str, value: Any) -> nn.Module:
    if isinstance(value, nn.Module):
        return value
    raise UsageError(f"{name} gives {kind(value)}; it must give a memprof.Workload or an nn.Module")


class _PrebuiltModule:
    """A module that was built to find out what its function returns. The first call returns it instead of a new one.

    That is done only if building it again would give the same module: the random state is the same as before, and no
    mode is active that would have to observe the building (fake tensors, a default device, a tracker).
    """

    def __init__(self, module: nn.Module, build: ModuleSource, before: torch.Tensor) -> None:
        self._module: nn.Module | None = module
        self._build = build
        self._before, self._after = before, torch.get_rng_state()
        torch.set_rng_state(before)

    def __call__(self) -> nn.Module:
        module, self._module = self._module, None
        if module is None or _mode_active() or not torch.equal(self._before, torch.get_rng_state()):
            del module  # its memory is freed before the next module is built
            return self._build()
        torch.set_rng_state(self._after)
        return module


class SharedModule:
    """A module object that the user's file created. It can be trained only once; fake tensors get a blank copy.

    Args:
        name: The name of the object, for the error message.
        module: The module.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self._name, self._module, self._taken = name, module, False

    def __call__(self) -> nn.Module:
        """Return the module, or a copy with fake parameters while fake tensors are active.

        Raises:
            UsageError: The module was returned before, so it may have been trained.
        """
        if fake_active():
            return blank_copy(self._module)
        if self._taken:
            raise UsageError(f"{self._name} is one module object; name its class or a function that builds it anew")
        self._taken = True
        return self._module


def blank_copy(module: nn.Module) -> nn.Module:
    """Return a copy whose parameters and buffers have the same shapes, dtypes and ties, but uninitialised values."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        blank = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(blank, tensor.requires_grad) if is_parameter else blank
    return copy.deepcopy(module, memo)


def _mode_active() -> bool:
    """Return whether a dispatch mode or a function mode (`with torch.device(...)`) is active."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._len_torch_function_stack() > 0


def fake_active() -> bool:
    """Return whether new tensors are fake."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(torch.empty(0), FakeTensor)
