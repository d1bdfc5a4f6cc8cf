"""What one kernel of this machine's CPU takes and gives back, by running it once.

Private API (see `memprof.torch_private`): `torch._C._autograd._enable_profiler_legacy` and
`_disable_profiler_legacy` (torch/csrc/autograd/profiler_legacy.cpp). It follows the calling thread alone, takes 0.2 ms
and says nothing on stderr, unlike Kineto, which `memprof.measurement.record.profiler` needs for its tree of operators.
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
    """Say whether a profiler runs already; there can be one."""
    return bool(_profiler_enabled())


def kernel_events(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int] | None:
    """Run an operator and return the bytes that it took (positive) and gave back (negative), in order.

    It runs on zeros; where it will not (a factorisation wants other matrices, a draw wants probabilities, a mask has to
    choose), on identity matrices, and on ones. Blocks that it never gives back are its outputs. PyTorch's random state
    stays as it is.

    Args:
        func: the operator's overload.
        args: of which tensors give the geometry; their values are not read.
        kwargs: likewise.

    Returns:
        None where nothing can be said: another profiler is running, or the kernel will not run.
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
        except _FAILURES:  # no strided tensor, or no memory
            return None
        _enable_profiler_legacy(_config())
        output = None
        try:
            output = func(*made_args, **made_kwargs)
        except _FAILURES:
            return None
        finally:
            threads = _disable_profiler_legacy()
            del output  # not before: it would be seen as given back
    return [size for events in threads for event in events if (size := _size(event))]


@cache
def _config() -> ProfilerConfig:
    return ProfilerConfig(ProfilerState.CPU, False, True, False, False, False, _ExperimentalConfig(), "")


def _size(event: Any) -> int:
    return int(event.cpu_memory_usage()) if event.kind() == "memory_alloc" else 0


def _made(value: Any, fill: Callable[[Tensor], object] | None) -> Any:
    """Return the value with zeros of the same geometry in place of every tensor, filled with something else if told."""
    if isinstance(value, Tensor):
        if not value.numel():
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
        last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
        made = torch.zeros(last + 1, dtype=value.dtype).as_strided(value.shape, value.stride())
        numbers = made.is_floating_point() or made.is_complex()
        if fill is not None and (numbers or made.dtype is torch.bool):  # a mask has to choose as many as are given
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
