"""Finds out which implementation of an optimizer's step ran, from the operators that it called and not its options."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def implementation_name(optimizer: torch.optim.Optimizer, step_operators: Collection[str]) -> str:
    """Return the name of the implementation that ran: the optimizer's own name, `fused`, `foreach` or `for-loop`.

    Args:
        optimizer: An optimizer that has taken a step. If it has a string attribute `kernel` (`sm3.SM3`: `chunked`,
            ...), that is the answer.
        step_operators: The names of the operators called within `step()`, as the dispatcher spells them
            (`aten::_fused_adam_`) or as a dispatch mode does (`aten._fused_adam_.default`). Fused steps of torch.optim
            also call `_foreach_` operators (for the step counters), so a single `_fused_` operator decides. Kernels
            that a library launches without the dispatcher are not seen here, and count as `for-loop`.

    Returns:
        The name of the implementation.
    """
    kernel = getattr(optimizer, "kernel", None)
    if isinstance(kernel, str) and kernel:
        return kernel
    bare = {name.removeprefix("aten::").removeprefix("aten.") for name in step_operators}
    for implementation in ("fused", "foreach"):
        if any(name.startswith(f"_{implementation}_") for name in bare):
            return implementation
    return "for-loop"
