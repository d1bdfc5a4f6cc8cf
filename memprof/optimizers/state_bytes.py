"""Byte-exact optimizer state: every storage that an optimizer keeps alive and the model does not own."""

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

# What a walk does not enter: values without references, code and its closures, and things that lead out of
# the optimizer (modules, loggers, threads). Weak references keep nothing alive.
_OPAQUE = (
    *(type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, torch.Generator),
    *(types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial),
    *(types.CodeType, types.FrameType, types.GeneratorType, weakref.ReferenceType, nn.Module),
    *(logging.Logger, threading.Thread),
)
_CONTAINER_MODULES = (nn.ParameterList, nn.ParameterDict)


@dataclass(frozen=True)
class StateReport:
    """What an optimizer holds between two steps.

    Attributes:
        bytes: the sum over unique storages.
        device_bytes: the same bytes by device, e.g. `{"cuda:0": 8192, "cpu": 4}`.
        by_dtype: the same bytes by dtype, e.g. `{"float32": 8196}`; a storage counts under the dtype of the
            tensor through which it was first reached.
        tensors: the number of unique storages.
    """

    bytes: int
    device_bytes: dict[str, int]
    by_dtype: dict[str, int]
    tensors: int


def measure_state(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> StateReport:
    """Count the bytes of every storage that the optimizer holds, apart from the model's own.

    Reached are `optimizer.state`, the extras of `param_groups` and all attributes of the optimizer, through
    any nest of containers, objects, nested optimizers and tensor subclasses. A view counts as the whole
    storage that it keeps alive; a storage counts once however many tensors share it. Storages of `parameters`
    and of their gradients do not count. Python numbers are 0 bytes. Memory outside torch storages (NumPy
    arrays, C++ objects) and what only a closure holds is not seen.

    Args:
        optimizer: any optimizer; its state is created in the first step, so call this after one.
        parameters: all parameters of the model, those that the optimizer does not train too. Tensors of a
            parameter group that are not among them (float32 master weights) are the optimizer's, hence state.
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
    """Yield each storage that `measure_state` counts, once, with the dtype of the tensor that led to it."""
    for tensor in _state_tensors(optimizer, parameters):
        yield tensor.untyped_storage(), tensor.dtype


def _state_tensors(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield one dense tensor for each non-empty storage that is the optimizer's own."""
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
    """Yield every tensor that an object refers to, depth first in the order of its attributes and items."""
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
    """Return what an object keeps alive: items, attributes and slots, of C-implemented containers too."""
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
    """Whether a tensor has a storage; a `_make_wrapper_subclass` has only the shape of one."""
    if isinstance(tensor, FakeTensor) or type(tensor) in (Tensor, nn.Parameter):
        return True
    try:
        tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return False
    return True


def _storage_key(tensor: Tensor) -> tuple[str | torch.device, int]:
    """Return what two tensors on the same memory have in common.

    That is the address; tensors without data (fake, meta) have none, and there it is torch's storage object.
    """
    storage = tensor.untyped_storage()
    if tensor.is_meta or (type(tensor) is not Tensor and isinstance(tensor, FakeTensor)):
        return "storage", storage._cdata
    return tensor.device, storage.data_ptr()
