"""Tensors without memory: ordinary CPU tensors at an invented address with nothing behind it.

To everything above the dispatcher they look like the tensors of a real training (the same class, device, dispatch keys,
autograd graph and reference counts), so PyTorch takes the same paths with them. PyTorch's own `FakeTensor` is a
subclass that answers `.device` from Python, and autograd asks for it several times per operator. An operator takes
80 us on a `FakeTensor` and 10 us on these (2.13.0). Only `memprof.prediction.fake.dispatch` may run operators on them,
because a kernel would fault.

Private API (see `memprof.torch_private`): `torch._C._construct_storage_from_data_pointer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from memprof.errors import UsageError
from memprof.prediction.fake.event_log import EventLog
from memprof.trace.events import LabelMark

HOST_MARK = "_memprof_host"  # on a storage without memory that is the host's; the others are known by address
_CPU = torch.device("cpu")
_make_storage: Callable[[int, torch.device, int], torch.UntypedStorage] = torch._C._construct_storage_from_data_pointer  # type: ignore[assignment]  # its stub names the C++ class


@dataclass(frozen=True, slots=True)
class Layout:
    """The geometry of one output of an operator.

    Attributes:
        size: The shape.
        stride: The stride of each dimension, in entries.
        dtype: The type of an entry.
        offset: The offset in the storage, in entries.
        storage: The index of its storage among the operator's new storages.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    storage: int


@dataclass(frozen=True, slots=True)
class Result:
    """The result of an operator for arguments of one geometry.

    Attributes:
        storages: The bytes of each storage that it makes.
        shape: A `Layout`, a list or tuple of such shapes, or a value that is returned as it is.
        aliases: Whether an output views an argument although the schema does not say so.
        resized: The new geometry of each argument that the operator resizes, by its place among the tensors.
        entries: The number of entries of the largest output.
        kind: `floats` if any output is floating-point or complex, else `integers` if any is an integer, else
            `booleans`.
    """

    storages: tuple[int, ...]
    shape: Any
    aliases: bool = False
    resized: tuple[tuple[int, Layout], ...] = ()
    entries: int = 0
    kind: Literal["floats", "integers", "booleans"] = "booleans"


Correction = Callable[[tuple[Any, ...], Result], Result]


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among an operator's arguments or outputs, including those in lists.

    Args:
        values: The arguments or outputs.
    """
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [item for item in value if isinstance(item, Tensor)]
    return found


class FakeTensors:
    """Makes fake tensors, and finds by PyTorch's own meta kernels what an operator returns.

    Args:
        log: Notes every storage that is made.
        corrections: For each operator that differs from its meta kernel, the function that corrects the result.
        results: For each operator without a meta kernel, the function that returns its result.
    """

    def __init__(
        self,
        log: EventLog,
        corrections: Mapping[Any, Correction],
        results: Mapping[Any, Callable[[tuple[Any, ...]], Result]],
    ) -> None:
        self._log = log
        self._corrections = corrections
        self._own_results = results
        self._fakes: TorchDispatchMode | None = None

    def build(self, result: Result, host: bool = False) -> tuple[Any, list[int]]:
        """Make the tensors of a result.

        Args:
            result: The result.
            host: Whether they are in the host's memory.

        Returns:
            The tensors, and the addresses of their storages in order.
        """
        storages, addresses = [], []
        for size in result.storages:
            address = self._log.new_address() if size else 0
            storage = _make_storage(address, _CPU, size)
            if size:
                self._log.allocated(storage, address, size, host)
                addresses.append(address)
            elif host:
                setattr(storage, HOST_MARK, True)
            storages.append(storage)
        return _assemble(result.shape, storages), addresses

    def map_file(self, size: int, host: bool) -> torch.UntypedStorage:
        """Return the storage of a file; the CPU's profiler counts what `UntypedStorage.from_file` maps."""
        address = self._log.new_address()
        storage = _make_storage(address, _CPU, size)
        self._log.allocated(storage, address, size, host)
        if not host:
            self._log.mark(LabelMark("workspace", {address: ""}))
        return storage

    def evaluate(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Result:
        """Return the result of an operator's meta kernel for tensors of the given geometry.

        PyTorch treats the device of a meta tensor as an accelerator (`device_hint` in torch/_meta_registrations.py).
        Corrections apply what a CPU does differently.

        Args:
            func: The operator's overload.
            args: Its arguments.
            kwargs: Its keyword arguments.

        Raises:
            Exception: The kernel raised it, because shapes do not match or the output depends on values.
        """
        if func in self._own_results:
            return self._own_results[func](args)
        with torch.no_grad():
            try:
                result = _evaluated(func, args, kwargs, torch.device("meta"))
            except NotImplementedError:
                with self._fake_mode():
                    result = _evaluated(func, args, kwargs, _CPU)
        correction = self._corrections.get(func)
        return result if correction is None else correction(args, result)

    def _fake_mode(self) -> TorchDispatchMode:
        """Return PyTorch's fake mode, which decomposes operators without a meta kernel. It is slow to import."""
        from torch._subclasses.fake_tensor import FakeTensorMode

        self._fakes = self._fakes or FakeTensorMode(allow_non_fake_inputs=True)
        return self._fakes


def contiguous_result(output: tuple[Tensor, ...]) -> Result:
    """Return the result of an operator whose outputs look like these tensors, each in a storage of its own.

    Args:
        output: The outputs as meta tensors.
    """
    layouts = tuple(_layout(tensor, number) for number, tensor in enumerate(output))
    return Result(tuple(tensor.untyped_storage().nbytes() for tensor in output), layouts)


def _evaluated(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device) -> Result:
    stand_args = tuple(_stand_in(value, device) for value in args)
    stand_kwargs = {name: _stand_in(value, device) for name, value in kwargs.items()}
    if any(argument.name == "device" for argument in func._schema.arguments):
        stand_kwargs["device"] = device
    given = tensors_in((*stand_args, *stand_kwargs.values()))
    before = [tensor.shape for tensor in given]
    result = _Description(given).result(func(*stand_args, **stand_kwargs))
    resized = tuple((n, _layout(tensor, 0)) for n, tensor in enumerate(given) if tensor.shape != before[n])
    return replace(result, resized=resized) if resized else result


def _stand_in(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise UsageError(f"tensors of layout {value.layout} cannot be predicted: measure with --device cpu or cuda")
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    if isinstance(value, (list, tuple)):
        return type(value)(_stand_in(item, device) for item in value)
    return value


class _Description:
    """Describes what an operator returned."""

    def __init__(self, given: list[Tensor]) -> None:
        self._known = {tensor.untyped_storage()._cdata for tensor in given}
        self._numbers: dict[int, int] = {}
        self._sizes: list[int] = []
        self._aliases = False
        self._entries = 0
        self._kind: Literal["floats", "integers", "booleans"] = "booleans"

    def result(self, output: Any) -> Result:
        shape = self._take(output)
        return Result(tuple(self._sizes), shape, self._aliases, (), self._entries, self._kind)

    def _take(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._take(item) for item in value)
        if not isinstance(value, Tensor):
            return value
        storage = value.untyped_storage()
        self._aliases |= storage._cdata in self._known
        self._entries = max(self._entries, value.numel())
        if value.is_floating_point() or value.is_complex():
            self._kind = "floats"
        elif value.dtype is not torch.bool and self._kind == "booleans":
            self._kind = "integers"
        number = self._numbers.setdefault(storage._cdata, len(self._sizes))
        if number == len(self._sizes):
            self._sizes.append(storage.nbytes())
        return _layout(value, number)


def _layout(tensor: Tensor, storage: int) -> Layout:
    return Layout(tuple(tensor.shape), tensor.stride(), tensor.dtype, int(tensor.storage_offset()), storage)


def _assemble(shape: Any, storages: list[torch.UntypedStorage]) -> Any:
    if isinstance(shape, Layout):
        tensor = torch.empty(0, dtype=shape.dtype)
        return tensor.set_(storages[shape.storage], shape.offset, shape.size, shape.stride)
    if isinstance(shape, (list, tuple)):
        return type(shape)(_assemble(item, storages) for item in shape)
    return shape
