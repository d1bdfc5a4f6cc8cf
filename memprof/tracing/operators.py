"""What the training step is doing while memory moves: the operator, and the module that it runs for.

Private API of PyTorch, checked on 2.13.0 and 2.15.0: `torch._C._current_autograd_node`,
`torch._C._autograd._get_sequence_nr`, `Node._sequence_nr`, `torch._dynamo.utils.counters`, and the global module hooks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from memprof.tracing.events import Mark, OperatorBegin, OperatorEnd
from memprof.tracing.storages import data_pointers, nested_tensors


class OperatorTracker(TorchDispatchMode):
    """Marks the begin and end of every operator, without holding on to any tensor.

    In the forward pass the module is the innermost one that is running. In the backward pass it is the one whose
    forward created the autograd node, found by the node's sequence number: no hook is put into the graph, so
    tensors live exactly as long as without the tracker.

    Args:
        model: the model, whose modules give the names.
        mark: takes the marks.
        opaque: phases in which to look away, because compiled code runs in them and refuses to be followed.
    """

    def __init__(self, model: nn.Module, mark: Callable[[Mark], None], opaque: Collection[str] = frozenset()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {id(module): name for name, module in model.named_modules()}
        self._owners = {
            id(parameter): module_name
            for module_name, module in model.named_modules()
            for parameter in module.parameters(recurse=False)
        }
        self._mark = mark
        self._stack: list[str] = []
        self._module_of_node: dict[int, str] = {}
        self._opaque = opaque
        self._following = False
        self._phase = ""
        self.operators_of: dict[str, set[str]] = {}

    @contextmanager
    def attached(self) -> Iterator[OperatorTracker]:
        """Follow operators and modules within the `with` block."""
        enter = register_module_forward_pre_hook(self._enter)
        leave = register_module_forward_hook(self._leave, always_call=True)
        try:
            self._follow(True)
            yield self
        finally:
            self._follow(False)
            enter.remove()
            leave.remove()

    def begin_phase(self, phase: str) -> None:
        """Another phase of the training step begins."""
        self._phase = phase
        self._follow(phase not in self._opaque)

    def _follow(self, wanted: bool) -> None:
        if wanted and not self._following:
            self.__enter__()  # type: ignore[no-untyped-call]
        elif self._following and not wanted:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._following = wanted

    def _enter(self, module: nn.Module, args: object) -> None:
        self._stack.append(self._names.get(id(module), self._stack[-1] if self._stack else ""))

    def _leave(self, module: nn.Module, args: object, output: object) -> None:
        self._stack.pop()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func._schema.name
        self.operators_of.setdefault(self._phase, set()).add(name)
        module, recompute = self._current_module()
        self._mark(OperatorBegin(name, module, recompute))
        output = func(*args, **(kwargs or {}))
        self._mark(OperatorEnd(data_pointers(nested_tensors(output))))
        return output

    def _current_module(self) -> tuple[str, bool]:
        node = torch._C._current_autograd_node()
        if self._stack:
            # The autograd node of this operator was made just before it was dispatched here.
            self._module_of_node[torch._C._autograd._get_sequence_nr() - 1] = self._stack[-1]
            return self._stack[-1], node is not None
        if node is None:
            return "", False
        parameter = getattr(node, "variable", None)  # an AccumulateGrad node
        if parameter is not None:
            return self._owners.get(id(parameter), ""), False
        return self._module_of_node.get(node._sequence_nr(), ""), False


def compiled_graphs() -> int:
    """Return how many graphs torch.compile has captured in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])
