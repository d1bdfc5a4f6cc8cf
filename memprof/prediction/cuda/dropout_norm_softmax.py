"""Dropout, RMS norm and softmax on CUDA: one kernel, where a CPU composes them of several operators.

Dropout keeps a mask of one byte for each element, where a CPU keeps a mask of the input's type. RMS norm keeps one
number for each row, where a CPU keeps every intermediate tensor. Softmax reads float16 and writes float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _composed(operator: Any, *args: Any) -> Tensor:
    """Run the operators that PyTorch composes an operator of. `decompose` may run a Python version that differs."""
    output: Tensor = operator._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args)
    return output


def dropout(tensor: Tensor, p: float, train: bool) -> Tensor:
    """Run one kernel where `is_fused_kernel_acceptable` in aten/src/ATen/native/Dropout.cpp says so.

    Args:
        tensor: The input.
        p: The probability with which an element becomes zero.
        train: Whether the model is in training mode; otherwise dropout does nothing.
    """
    if train and 0 < p < 1 and tensor.numel():
        output: Tensor = aten.native_dropout(tensor, p, True)[0]
        return output
    return _composed(aten.dropout.default, tensor, p, train)


def rms_norm(tensor: Tensor, shape: list[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Run one kernel if the weight has the input's type (`rms_norm_symint` in aten/src/ATen/native/layer_norm.cpp).

    Args:
        tensor: The input.
        shape: The last dimensions, over which the norm is taken.
        weight: The weight, of that shape; None for none.
        eps: The number added to the mean square; None for the smallest of the type.
    """
    if weight is not None and weight.dtype != tensor.dtype:
        return _composed(aten.rms_norm.default, tensor, shape, weight, eps)
    output: Tensor = aten._fused_rms_norm(tensor, shape, weight, eps)[0]
    return output


def softmax(composed: Any, kernel: Any) -> Callable[..., Any]:
    """Return how CUDA runs `softmax` or `log_softmax`.

    Args:
        composed: The operator.
        kernel: The operator of its kernel.
    """

    def run(tensor: Tensor, dim: int, dtype: torch.dtype | None = None) -> Any:
        """Read float16 and write float32 in one kernel (aten/src/ATen/native/SoftMax.cpp)."""
        if tensor.dtype is torch.float16 and dtype is torch.float32:
            return kernel(tensor, dim, True)
        return _composed(composed, tensor, dim, dtype)

    return run
