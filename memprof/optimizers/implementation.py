"""Which implementation of an optimizer's step ran, read from what it did and not from what was asked for."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def implementation_name(optimizer: torch.optim.Optimizer, step_operators: Collection[str]) -> str:
    """Return the implementation that ran: the optimizer's own word for it, or `fused`, `foreach`, `for-loop`.

    Args:
        optimizer: an optimizer that has stepped. A string attribute `kernel` (`sm3.SM3`: `chunked`, ...)
            names what ran and wins.
        step_operators: names of the operators dispatched within `step()`, as the dispatcher spells them
            (`aten::_fused_adam_`) or as a dispatch mode does (`aten._fused_adam_.default`). Fused steps of
            torch.optim call `_foreach_` operators too (for the step counters), so one `_fused_` operator
            decides. Kernels that a library launches past the dispatcher leave no trace here, and count as the
            loop that launched them.
    """
    kernel = getattr(optimizer, "kernel", None)
    if isinstance(kernel, str) and kernel:
        return kernel
    bare = {name.removeprefix("aten::").removeprefix("aten.") for name in step_operators}
    for implementation in ("fused", "foreach"):
        if any(name.startswith(f"_{implementation}_") for name in bare):
            return implementation
    return "for-loop"
