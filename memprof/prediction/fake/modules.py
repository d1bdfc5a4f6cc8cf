"""Finds the module that is running, in the forward pass and in the backward pass.

Private API (see `memprof.torch_private`): `torch._C._current_autograd_node`,
`torch._C._autograd._get_sequence_nr`, `Node._sequence_nr`, `torch._C.DisableTorchFunction`, and the global module
hooks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


def unwatched() -> AbstractContextManager[None]:
    """Return a context in which no torch function mode sees accesses to tensors.

    It is meant for code that is no part of the training, because a mode costs microseconds for every attribute read.
    """
    return torch._C.DisableTorchFunction()


class RunningModules:
    """Names the module for which an operator runs, without keeping any tensor alive.

    In the forward pass it is the innermost module that runs. In the backward pass it is the module whose forward made
    the autograd node, which is found by the node's sequence number.

    Args:
        model: The model whose modules give the names; None if models are added later.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self._names: dict[int, str] = {}
        self._owners: dict[int, str] = {}
        if model is not None:
            self.add(model)
        self._stack: list[str] = []
        self._module_of_node: dict[int, str] = {}

    def add(self, model: nn.Module, prefix: str = "") -> None:
        """Add the names of a model's modules.

        Args:
            model: The model.
            prefix: The prefix of the names.
        """
        for name, module in model.named_modules(prefix=prefix):
            self._names[id(module)] = name
            self._owners.update({id(parameter): name for parameter in module.parameters(recurse=False)})

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Follow the modules that run within the `with` block."""
        enter = register_module_forward_pre_hook(self._enter)
        leave = register_module_forward_hook(self._leave, always_call=True)
        try:
            yield
        finally:
            enter.remove()
            leave.remove()

    def place(self) -> tuple[str, bool]:
        """Return where an operator runs.

        Returns:
            The dotted name of the module, "" outside of modules, and whether the backward pass is running the module's
            forward again.
        """
        node = torch._C._current_autograd_node()
        if self._stack:
            # The autograd node of this operator was made just before it was dispatched.
            self._module_of_node[torch._C._autograd._get_sequence_nr() - 1] = self._stack[-1]
            return self._stack[-1], node is not None
        if node is None:
            return "", False
        parameter = getattr(node, "variable", None)  # an AccumulateGrad node
        if parameter is not None:
            return self._owners.get(id(parameter), ""), False
        module = self._module_of_node.get(node._sequence_nr(), "")
        again = torch.is_grad_enabled()  # only a forward pass that is run again builds a graph there
        if again:
            self._module_of_node[torch._C._autograd._get_sequence_nr() - 1] = module
        return module, again

    def _enter(self, module: nn.Module, args: object) -> None:
        self._stack.append(self._names.get(id(module), self._stack[-1] if self._stack else ""))

    def _leave(self, module: nn.Module, args: object, output: object) -> None:
        self._stack.pop()
