"""Makes up values where Python reads a fake tensor without an operator, because no memory stands behind it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor

from memprof.prediction.fake.assumed_values import expected_of
from memprof.prediction.fake.known_values import is_fake

if TYPE_CHECKING:
    from memprof.prediction.fake.dispatch import FakeOperators

_LARGEST = 1 << 20  # entries that are made up as ones; more of them as zeros, which take no memory until they are read


@contextmanager
def readable_in_python(mode: FakeOperators) -> Iterator[None]:
    """Make `numpy()`, `tolist()`, printing and copying accept fake tensors within the `with` block.

    Args:
        mode: Runs the operators.
    """

    def made_up(tensor: Tensor, how: str) -> Tensor:
        """Return a real tensor of the same shape, and note that its values were read."""
        size = tuple(tensor.shape)
        mode.reads.guess_here(mode.place()[0], f"reads values that depend on the data ({how}): they were taken to be 1")
        with torch.utils._python_dispatch._disable_current_modes(), torch._C.DisableTorchFunction():
            expected = expected_of(tensor)
            if tensor.numel() > _LARGEST:
                return torch.zeros(size, dtype=tensor.dtype)
            return torch.full(size, 1 if expected is None else expected, dtype=tensor.dtype)

    def instead(name: str) -> Any:
        original = getattr(Tensor, name)

        def read(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not is_fake(tensor) or not tensor.numel():
                return original(tensor, *args, **kwargs)
            real = made_up(tensor, name.strip("_"))
            with torch.utils._python_dispatch._disable_current_modes(), torch._C.DisableTorchFunction():
                return original(real, *args, **kwargs)

        return read

    def shown(tensor: Tensor, **kwargs: Any) -> str:
        if is_fake(tensor) and tensor.numel():
            return f"tensor(..., size={tuple(tensor.shape)}, dtype={tensor.dtype})"
        return str(plain(tensor, **kwargs))

    def deep_copy(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
        """Copy a tensor by an operator, because its storage cannot be read."""
        if type(tensor) is not Tensor or not is_fake(tensor) or id(tensor) in memo or not tensor.is_leaf:
            original: Tensor = copied(tensor, memo)
            return original
        storage = tensor.untyped_storage()
        whole = memo.setdefault(("memprof", storage._cdata), None)  # type: ignore[call-overload]
        with torch.no_grad():
            if whole is None:
                flat = tensor.as_strided((storage.nbytes() // tensor.element_size(),), (1,), 0)
                whole = memo["memprof", storage._cdata] = flat.clone()  # type: ignore[index]
            made: Tensor = whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        if tensor.requires_grad:
            made.requires_grad_()
        made.__dict__.update(copy.deepcopy(tensor.__dict__, memo))
        memo[id(tensor)] = made
        return made

    plain: Any = Tensor.__repr__
    copied: Any = Tensor.__deepcopy__
    with ExitStack() as stack:
        stack.enter_context(patch.multiple(Tensor, __repr__=shown, __deepcopy__=deep_copy))
        stack.enter_context(
            patch.multiple(Tensor, **{name: instead(name) for name in ("numpy", "tolist", "__array__")})
        )
        yield
