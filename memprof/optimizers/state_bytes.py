"""Measures optimizer state to the byte: every storage that an optimizer keeps alive and the model does not own."""

from __future__ import annotations

import functools
import gc
import logging
import threading
import types
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from memprof.trace.storages import is_plain, plain_tensors

# The search for tensors does not enter these: values without references, code and its closures, and objects that lead
# out of the optimizer (modules, loggers, threads). Weak references are here because they keep nothing alive.
_OPAQUE = (
    *(type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, torch.Generator),
    *(types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial),
    *(types.CodeType, types.FrameType, types.GeneratorType, weakref.ReferenceType, nn.Module),
    *(logging.Logger, threading.Thread),
)
_CONTAINER_MODULES = (nn.ParameterList, nn.ParameterDict)


@dataclass(frozen=True)
class StateReport:
    """The memory that an optimizer holds between two steps.

    Attributes:
        bytes: The total size of the unique storages.
        device_bytes: The same bytes by device, such as `{"cuda:0": 8192, "cpu": 4}`.
        by_dtype: The same bytes by dtype, such as `{"float32": 8196}`. A storage counts under the dtype of the tensor
            through which it was first reached.
        tensors: The number of unique storages.
    """

    bytes: int
    device_bytes: dict[str, int]
    by_dtype: dict[str, int]
    tensors: int


def measure_state(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> StateReport:
    """Count the bytes of every storage that the optimizer holds, except those of the model.

    The search covers `optimizer.state`, the extra entries of `param_groups` and all attributes of the optimizer,
    through any nesting of containers, objects, nested optimizers and tensor subclasses. A view counts with the whole
    storage that it keeps alive. A storage that several tensors share counts once. Storages of `parameters` and of their
    gradients do not count. Python numbers count 0 bytes. Memory outside torch storages (NumPy arrays, C++ objects), and
    tensors that only a closure holds, are not seen.

    Args:
        optimizer: Any optimizer. Its state is created in the first step, so call this function after one.
        parameters: All parameters of the model, including those that the optimizer does not train. Tensors of a
            parameter group that are not among them (float32 master weights) belong to the optimizer and count as state.

    Returns:
        The bytes in total, by device and by dtype.
    """
    devices: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    count = 0
    for count, tensor in enumerate(_state_tensors(optimizer, parameters), start=1):  # noqa: B007
        size = tensor.untyped_storage().nbytes()
        devices[str(tensor.device)] += size
        dtypes[str(tensor.dtype).removeprefix("torch.")] += size
    return StateReport(devices.total(), dict(devices), dict(dtypes), count)


def iter_state_storages(
    optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]
) -> Iterator[tuple[torch.UntypedStorage, torch.dtype]]:
    """Yield each storage that `measure_state` counts once, with the dtype of the tensor that led to it.

    Args:
        optimizer: As for `measure_state`.
        parameters: As for `measure_state`.

    Yields:
        The storage and the dtype.
    """
    for tensor in _state_tensors(optimizer, parameters):
        yield tensor.untyped_storage(), tensor.dtype


def _state_tensors(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield one dense tensor for each non-empty storage that belongs to the optimizer."""
    model = list(parameters)
    gradients = [parameter.grad for parameter in model if parameter.grad is not None]
    seen = {_storage_key(part) for tensor in (*model, *gradients) for part in _dense_parts(tensor)}
    for tensor in _reachable_tensors(optimizer, model):
        for part in _dense_parts(tensor):
            key = _storage_key(part)
            if key not in seen and part.untyped_storage().nbytes():
                seen.add(key)
                yield part


def _reachable_tensors(root: object, barred: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield every tensor that an object refers to, depth first, in the order of its attributes and items."""
    visited = {id(tensor): object() for tensor in barred}  # values keep objects alive, so that no id is reused
    stack = [root]
    while stack:
        item = stack.pop()
        if id(item) in visited or (isinstance(item, _OPAQUE) and not isinstance(item, _CONTAINER_MODULES)):
            continue
        visited[id(item)] = item
        if isinstance(item, Tensor):
            yield item
        stack.extend(reversed(_references(item)))


def _references(item: object) -> list[object]:
    """Return the objects that an object keeps alive: items, attributes and slots, also of containers written in C."""
    if isinstance(item, torch.UntypedStorage):
        return [torch.empty(0, dtype=torch.uint8, device=item.device).set_(item)]
    if not isinstance(item, Tensor):
        referents = gc.get_referents(item)  # of lists and tuples, CPython gives the last item first
        return referents[::-1] if isinstance(item, list | tuple) else referents
    own_gradient = [item.grad] if item.is_leaf and item.grad is not None else []  # of a master copy
    if isinstance(item, FakeTensor) or is_traceable_wrapper_subclass(item):
        return [*own_gradient]  # their attributes lead to fake modes and device meshes, not to memory
    return [*own_gradient, *vars(item).values()]


def _dense_parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the dense tensors whose storages hold the data (and the scales) of a tensor of any kind."""
    if is_plain(tensor) and not tensor.is_quantized:
        yield tensor
        return
    for part in plain_tensors(tensor):
        if part.is_quantized and "per_channel" in str(part.qscheme()):
            yield from (part.q_per_channel_scales(), part.q_per_channel_zero_points())
        if _has_memory(part):
            yield part


def _has_memory(tensor: Tensor) -> bool:
    """Return whether a tensor has a storage with memory; a `_make_wrapper_subclass` has none."""
    if isinstance(tensor, FakeTensor) or type(tensor) in (Tensor, nn.Parameter):
        return True
    try:
        tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return False
    return True


def _storage_key(tensor: Tensor) -> tuple[str | torch.device, int]:
    """Return a key that two tensors on the same memory share.

    It is the address. Tensors without data (fake, meta) have no address, so their key is torch's storage object.
    """
    storage = tensor.untyped_storage()
    if tensor.is_meta or (type(tensor) is not Tensor and isinstance(tensor, FakeTensor)):
        return "storage", storage._cdata
    return tensor.device, storage.data_ptr()
