"""Recognises operators that autograd runs in place, but not while a dispatch mode is active.

Autograd adds a second gradient of a tensor to the first in place if it holds the only reference to the first
(`can_accumulate_inplace` in torch/csrc/autograd/input_buffer.cpp). It also writes the gradients of `gather`, indexing
and similar operators into fresh zeros in place (`areAnyTensorSubclassLike` in aten/src/ATen/native and
torch/csrc/autograd/FunctionsManual.cpp). It does neither under a dispatch mode, so a fake training does both itself.

The reference counts that mean "nobody else holds it" depend on the PyTorch version. They are learned from a sum of two
gradients that certainly nobody else holds.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
_FILLS = {
    *(aten.scatter_add.default, aten.scatter.src, aten.scatter.value, aten.index_add.default),
    *(aten.index_put.default, aten.masked_scatter.default, aten.index_fill.int_Tensor),
}
# Its gradient is (sigmoid - target) * gradient, each in place of the one before.
_LOGITS, _LOGIT_STEPS = "BinaryCrossEntropyWithLogitsBackward0", {aten.sub.Tensor, aten.mul.Tensor}
IN_PLACE = {aten.add.Tensor, *_FILLS, *_LOGIT_STEPS}


class Accumulation:
    """Recognises what autograd does in place.

    Args:
        exclusive: The reference counts of a gradient that nobody else holds; None to learn them.
    """

    def __init__(self, exclusive: tuple[int, ...] | None = None) -> None:
        self.exclusive = exclusive
        self._learning = False

    def learn(self) -> None:
        """Learn the reference counts from a sum of two fresh gradients, under the dispatch mode that will ask."""
        with torch.enable_grad():
            leaf = torch.empty(1, requires_grad=True)
            doubled = leaf * 2
            total = (doubled.exp() + doubled.sin()).sum()
            self._learning = True
            total.backward()
            self._learning = False

    def is_in_place(self, func: Any, args: tuple[Any, ...]) -> bool:
        """Return whether autograd runs an operator itself and in place.

        Call it directly from the dispatch mode, because every stack frame in between adds references.

        Args:
            func: The operator's overload.
            args: Its arguments.
        """
        node = None if torch.is_grad_enabled() else torch._C._current_autograd_node()
        if node is None:
            return False
        if func in _LOGIT_STEPS:
            return node.name() == _LOGITS
        if func in _FILLS:
            return node.name()[-1:].isdigit()  # a derivative of PyTorch's own, not a `torch.autograd.Function`
        if len(args) != 2:
            return False
        counts = _counts(args[0]), _counts(args[1])
        if self._learning:
            self.exclusive = counts[0]
        return counts[0] == self.exclusive and is_dense(args[0]) and args[0].shape == args[1].shape


@cache
def in_place_twin(func: Any) -> Any:
    """Return the operator that autograd would call without a dispatch mode, as `aten::add_` for `aten::add`.

    Args:
        func: The operator that the dispatch mode sees.
    """
    namespace, _, name = func._schema.name.partition("::")
    return getattr(getattr(getattr(torch.ops, namespace), f"{name}_"), func._overloadname)


def is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor fills one stretch of memory in some order (`is_non_overlapping_and_dense`).

    Args:
        tensor: A strided tensor.
    """
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _counts(tensor: Any) -> tuple[int, ...]:
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
        return ()
    count: Any = tensor._use_count  # type: ignore[attr-defined]
    uses: int = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
    return count(), uses, sys.getrefcount(tensor)
