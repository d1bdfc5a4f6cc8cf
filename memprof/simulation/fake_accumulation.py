"""Where autograd sums two gradients of one tensor in place.

It does so if it holds the only reference to the first, but not while a dispatch mode looks on
(`can_accumulate_inplace` in torch/csrc/autograd/input_buffer.cpp); a fake training has to do it in autograd's place.
Which reference counts mean "nobody else" is a matter of the PyTorch version, so it is learned from a sum of two
gradients that certainly nobody else holds.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor


class Accumulation:
    """Recognises the sums of gradients that autograd does in place."""

    def __init__(self) -> None:
        self._exclusive: tuple[int, ...] | None = None
        self._learning = False

    def learn(self) -> None:
        """Sum two fresh gradients, under the dispatch mode that will ask."""
        with torch.enable_grad():
            leaf = torch.empty(1 << 20, requires_grad=True)
            doubled = leaf * 2
            total = (doubled.exp() + doubled.sin()).sum()
            self._learning = True
            total.backward()
            self._learning = False

    def is_in_place(self, args: tuple[Any, ...]) -> bool:
        """Say whether an addition is autograd's own and done in place; called straight from the dispatch mode."""
        if torch.is_grad_enabled() or len(args) != 2 or torch._C._current_autograd_node() is None:
            return False
        counts = _counts(args[0]), _counts(args[1])
        if self._learning:
            self._exclusive = counts[0]
        return counts[0] == self._exclusive and args[0].is_contiguous() and args[0].shape == args[1].shape


def _counts(tensor: Any) -> tuple[int, ...]:
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
        return ()
    count: Any = tensor._use_count  # type: ignore[attr-defined]
    uses: int = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
    return count(), uses, sys.getrefcount(tensor)
