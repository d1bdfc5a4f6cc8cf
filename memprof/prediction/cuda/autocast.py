"""Autocast with the lists of CUDA, on tensors that claim to be on a CPU.

Both devices run matrix products and convolutions in the low precision, and keep a cast copy of each weight until the
`with` block ends. They differ in the operators that run in float32. On CUDA these are also norms, softmax,
exponentials, powers and sums, which decides the size of many tensors that are saved for the backward pass.

Source: `AT_FORALL_FP32` and `AT_FORALL_FP32_SET_OPT_DTYPE` in `ATen/autocast_mode.h` (2.13.0 and 2.15.0), and
`AutocastCPU` in `aten/src/ATen/autocast_mode.cpp`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

# The floating-point arguments of these operators are cast to float32.
_FLOAT32 = (
    *("acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt"),
    *("sinh", "tan", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "softplus", "layer_norm"),
    *("native_layer_norm", "rms_norm", "group_norm", "cosine_similarity", "nll_loss", "nll_loss2d", "kl_div"),
    *("l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss", "binary_cross_entropy_with_logits", "dist", "cdist"),
    *("renorm", "logsumexp", "norm.Scalar", "norm.ScalarOpt_dim", "frobenius_norm.dim", "nuclear_norm"),
    *("upsample_nearest2d", "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"),
)
# The result of these operators is float32 unless the caller names another type.
_FLOAT32_RESULT = (
    *("prod", "prod.dim_int", "softmax.int", "log_softmax.int", "cumprod", "cumsum", "linalg_vector_norm"),
    *("sum", "sum.dim_IntList"),
)
# On a CPU these cast their arguments to float32. On CUDA the operators that they are composed of decide.
_LEFT_ALONE = ("cross_entropy_loss", "avg_pool3d")
_KEY = "AutocastCPU"
_without_autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


def register_autocast(library: torch.library.Library) -> None:
    """Replace the CPU's choices by CUDA's while the library is alive.

    Args:
        library: An `IMPL` library of the namespace `aten`.
    """
    for name in _FLOAT32:
        _register(library, name, _in_float32)
    for name in _FLOAT32_RESULT:
        _register(library, name, _into_float32)
    for name in _LEFT_ALONE:
        library.impl(name, torch.library.fallthrough_kernel, _KEY)


def _register(library: torch.library.Library, name: str, policy: Callable[[Any], Callable[..., Any]]) -> None:
    packet, _, overload = name.partition(".")
    known = hasattr(aten, packet) and (overload or "default") in getattr(aten, packet).overloads()
    if known and not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", _KEY):  # else the CPU agrees
        library.impl(name, policy(getattr(getattr(aten, packet), overload or "default")), _KEY)


def _in_float32(operator: Any) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_without_autocast):
            return operator(*map(_cast, args), **{name: _cast(value) for name, value in kwargs.items()})

    return run


def _into_float32(operator: Any) -> Callable[..., Any]:
    """Pass float32 as the type of the result. Softmax casts float16 in its kernel; other inputs are cast first."""
    place = [argument.name for argument in operator._schema.arguments].index("dtype")
    positional = not operator._schema.arguments[place].kwarg_only

    def run(*args: Any, **kwargs: Any) -> Any:
        given = args[place] if positional and len(args) > place else kwargs.get("dtype")
        if given is None and _is_eligible(args[0]):
            args, kwargs = args[:place] if positional else args, {**kwargs, "dtype": torch.float32}
        with torch._C._ExcludeDispatchKeyGuard(_without_autocast):
            return operator(*args, **kwargs)

    return run


def _is_eligible(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype is not torch.float64


def _cast(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_cast, value))
    return value.float() if _is_eligible(value) else value
