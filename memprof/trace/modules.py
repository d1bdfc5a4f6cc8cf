"""Marks that say which module's forward is running."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from memprof.trace.events import Mark, ModuleMark


@contextmanager
def followed_modules(model: nn.Module, mark: Callable[[Mark], None]) -> Iterator[None]:
    """Mark the start and the end of every module's forward within the `with` block, recomputed ones included.

    Args:
        model: the model whose modules give the names. A module outside of it counts as part of the module that calls
            it.
        mark: a function that receives the marks.
    """
    names = {id(module): name for name, module in model.named_modules()}
    running: list[str] = []

    def enter(module: nn.Module, args: object) -> None:
        running.append(names.get(id(module), running[-1] if running else ""))
        mark(ModuleMark(running[-1], enters=True))

    def leave(module: nn.Module, args: object, output: object) -> None:
        mark(ModuleMark(running.pop(), enters=False))

    hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def compiled_graphs() -> int:
    """Return the number of graphs that torch.compile has captured in this process.

    Private API (see `memprof.torch_private`): `torch._dynamo.utils.counters`.
    """
    dynamo = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])
