"""Records what one kernel of this machine's CPU allocates and frees, by running it once.

Private API (see `memprof.torch_private`): `torch._C._autograd._enable_profiler_legacy` and
`_disable_profiler_legacy` (torch/csrc/autograd/profiler_legacy.cpp). This profiler follows only the calling thread,
takes 0.2 ms and writes nothing to stderr. Kineto does otherwise, but `memprof.measurement.record.profiler` needs its
tree of operators.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import _disable_profiler_legacy, _enable_profiler_legacy, _profiler_enabled
from torch._C._profiler import ProfilerConfig, ProfilerState, _ExperimentalConfig

_FAILURES = (RuntimeError, IndexError, ValueError, TypeError)


def is_recording() -> bool:
    """Return whether a profiler runs already. There can be only one."""
    return bool(_profiler_enabled())


def kernel_events(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int] | None:
    """Run an operator and return the bytes that it allocated (positive) and freed (negative), in order.

    It runs on zeros. If the kernel fails on zeros (a factorisation needs other matrices, a draw needs probabilities, a
    mask must select entries), it runs on identity matrices, and then on ones. Blocks that it never frees are its
    outputs. PyTorch's random state does not change.

    Args:
        func: The operator's overload.
        args: The arguments. Only the geometry of tensors is used, not their values.
        kwargs: The keyword arguments, used in the same way.

    Returns:
        The sizes in bytes; None if another profiler is running or the kernel fails.
    """
    if is_recording():
        return None
    state = torch.default_generator.get_state()
    try:
        attempts = (_recorded(func, args, kwargs, fill) for fill in (None, _fill_identity, _fill_ones))
        return next((events for events in attempts if events is not None), None)
    finally:
        torch.default_generator.set_state(state)


def _recorded(func: Any, args: Any, kwargs: Any, fill: Callable[[Tensor], object] | None) -> list[int] | None:
    with torch.no_grad():
        try:
            made_args, made_kwargs = _made(args, fill), {name: _made(value, fill) for name, value in kwargs.items()}
        except _FAILURES:  # a tensor is not strided, or there is not enough memory
            return None
        _enable_profiler_legacy(_config())
        output = None
        try:
            output = func(*made_args, **made_kwargs)
        except _FAILURES:
            return None
        finally:
            threads = _disable_profiler_legacy()
            del output  # not earlier, because the profiler would see it as freed
    return [size for events in threads for event in events if (size := _size(event))]


@cache
def _config() -> ProfilerConfig:
    return ProfilerConfig(ProfilerState.CPU, False, True, False, False, False, _ExperimentalConfig(), "")


def _size(event: Any) -> int:
    return int(event.cpu_memory_usage()) if event.kind() == "memory_alloc" else 0


def _made(value: Any, fill: Callable[[Tensor], object] | None) -> Any:
    """Return the value with a tensor of zeros of the same geometry in place of every tensor, then filled by `fill`."""
    if isinstance(value, Tensor):
        if not value.numel():
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
        last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
        made = torch.zeros(last + 1, dtype=value.dtype).as_strided(value.shape, value.stride())
        numbers = made.is_floating_point() or made.is_complex()
        if fill is not None and (numbers or made.dtype is torch.bool):  # a mask must select as many entries as given
            fill(made)
        return made
    if isinstance(value, (list, tuple)):
        return type(value)([_made(item, fill) for item in value])
    return torch.Generator() if isinstance(value, torch.Generator) else value


def _fill_identity(tensor: Tensor) -> None:
    if tensor.dim() >= 2:
        tensor.diagonal(dim1=-2, dim2=-1).fill_(1)
    else:
        tensor.fill_(1)


def _fill_ones(tensor: Tensor) -> None:
    tensor.fill_(1)
