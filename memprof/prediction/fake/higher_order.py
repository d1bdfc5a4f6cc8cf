"""Runs higher-order operators, whose arguments are functions (`torch.cond`, FlexAttention), through their Python code.

Private API of PyTorch, checked on 2.13.0: `HigherOrderOperator.py_kernels`, `_disable_current_modes`, and
`torch._higher_order_ops.flex_attention.create_fw_bw_graph`, which traces the gradient of a score function with fake
tensors of PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

_COMPOSED = (torch._C.DispatchKey.CompositeExplicitAutograd, torch._C.DispatchKey.CPU)


def composed(mode: TorchDispatchMode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the operators that a higher-order operator is composed of, under the dispatch mode.

    Args:
        mode: The dispatch mode.
        func: The higher-order operator.
        args: The arguments of the operator.
        kwargs: The keyword arguments of the operator.

    Raises:
        NotImplementedError: PyTorch has only a compiled version of the operator.
    """
    for key in _COMPOSED:
        if key in func.py_kernels:
            with mode:
                return func.py_kernels[key](*args, **kwargs)
    raise NotImplementedError(f"{func.name()} has no version in Python")


def is_higher_order(func: Any) -> bool:
    """Return whether an operator takes functions as arguments.

    Args:
        func: The operator.
    """
    return isinstance(func, HigherOrderOperator)


@contextmanager
def traced_outside_modes() -> Iterator[None]:
    """Let PyTorch trace FlexAttention's score functions outside of dispatch modes within the `with` block."""
    flex_attention = import_module("torch._higher_order_ops.flex_attention")  # `import as` gives the operator
    trace = flex_attention.create_fw_bw_graph

    def create_fw_bw_graph(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return trace(*args, **kwargs)

    with patch.object(flex_attention, "create_fw_bw_graph", create_fw_bw_graph):
        yield
