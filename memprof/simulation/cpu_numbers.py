"""What a number in arithmetic takes on the CPU: itself as a tensor, and once more in the common type.

`tensor.add_(1e-8)` takes 8 bytes for the float64 that stands for the number, and 4 for the float32 that it is added as
(`wrapped_scalar_tensor` in ScalarOps.h, the casts of `TensorIteratorBase::build`; 2.13.0), and so does a mean, which
divides by a number of its own. It matters where two phases peak within a few bytes of each other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Args = tuple[Any, ...]
aten = torch.ops.aten

_IN_FLOATS = (aten.div.Tensor, aten.div_.Tensor)
_TO_ITSELF = (aten.add_.Tensor, aten.sub_.Tensor, aten.mul_.Tensor, aten.div_.Tensor)
_NEW = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.rsub.Scalar, aten.remainder.Scalar)
_COMPARED = (aten.eq, aten.ne, aten.gt, aten.ge, aten.lt, aten.le)
# The number is their second argument.
WITH_OPERANDS = frozenset((*_TO_ITSELF, *_NEW, *(operator.Scalar for operator in _COMPARED)))
MEANS = frozenset((aten.mean.default, aten.mean.dim))
_ENTRIES = 3  # of the stand-in: no size of it is that of a number


def takes_number(func: Any, args: Args) -> bool:
    """Say whether an operator makes a tensor of a Python number."""
    if func in MEANS:
        return args[0].dtype in (torch.float32, torch.float64)  # others are cast as a whole
    return func in WITH_OPERANDS and not isinstance(args[1], Tensor) and isinstance(args[0], Tensor)


def stand_in(func: Any, args: Args) -> Args:
    """Return arguments that take for the number what these do, small where the tensor itself is not cast.

    What is taken does not depend on the number's value, so it is always the same, and is asked for once.
    """
    small = torch.empty(_ENTRIES, dtype=args[0].dtype, device="cpu")
    if func in MEANS:
        return (small, [0]) if func is aten.mean.dim else (small,)
    tensor, number = args[0], type(args[1])(1)
    cast = tensor.dtype != torch.result_type(tensor, number) or (func in _IN_FLOATS and not tensor.is_floating_point())
    return (tensor if cast else small, number, *args[2:])
