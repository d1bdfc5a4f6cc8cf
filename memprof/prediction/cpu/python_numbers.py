"""What a number in arithmetic takes on the CPU: itself as a tensor, and once more in the common type.

`tensor.add_(1e-8)` takes 8 bytes for the float64 that stands for the number, and 4 for the float32 that it is added as
(`wrapped_scalar_tensor` in ScalarOps.h, the casts of `TensorIteratorBase::build`; 2.13.0), and so does a mean, which
divides by a number of its own. It matters where two phases peak within a few bytes of each other. The 8 bytes that
autograd keeps until the backward pass of a number that a tensor was multiplied by are not counted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Args = tuple[Any, ...]
aten = torch.ops.aten

_ARITHMETIC = (aten.add, aten.sub, aten.mul, aten.div, aten.add_, aten.sub_, aten.mul_, aten.div_)
_WITH_SCALARS = (*_ARITHMETIC, aten.rsub, aten.remainder, aten.eq, aten.ne, aten.gt, aten.ge, aten.lt, aten.le)
_DIVISIONS = (aten.div.Tensor, aten.div_.Tensor, aten.div.Scalar, aten.div_.Scalar)
# The number is their second argument.
WITH_OPERANDS = frozenset((*(one.Tensor for one in _ARITHMETIC), *(one.Scalar for one in _WITH_SCALARS)))
MEANS = frozenset((aten.mean.default, aten.mean.dim))
_ENTRIES = 3  # of the stand-in: no size of it is that of a number


def takes_number(func: Any, args: Args) -> bool:
    """Say whether an operator makes a tensor of a Python number, or casts a tensor that is one number."""
    if func in MEANS:
        return args[0].dtype in (torch.float32, torch.float64)  # others are cast as a whole
    if func not in WITH_OPERANDS or not isinstance(args[0], Tensor):
        return False
    other = args[1]
    return not isinstance(other, Tensor) or (not other.dim() and other.dtype != args[0].dtype)


def stand_in(func: Any, args: Args) -> Args:
    """Return arguments that take for the number what these do, small where the tensor itself is not cast.

    What is taken does not depend on the number's value, so it is always the same, and is asked for once.
    """
    small = torch.empty(_ENTRIES, dtype=args[0].dtype, device="cpu")
    if func in MEANS:
        return (small, [0]) if func is aten.mean.dim else (small,)
    tensor, other = args[0], args[1] if isinstance(args[1], Tensor) else type(args[1])(1)
    cast = tensor.dtype != torch.result_type(tensor, other) or (func in _DIVISIONS and not tensor.is_floating_point())
    return (tensor if cast else small, other, *args[2:])
