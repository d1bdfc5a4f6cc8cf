"""Tensors without memory: ordinary CPU tensors on an invented address, with nothing behind it.

To everything above the dispatcher they are what real training has (the same class, device, dispatch keys, autograd
graph, reference counts), so PyTorch takes the same paths with them. Its own `FakeTensor` is a subclass that answers
`.device` from Python, which autograd asks for several times per operator: an operator takes 80 us on one, 10 us on
these (2.13.0). Only `memprof.simulation.fake_operators` may run operators on them: a kernel would fault.

Private API of PyTorch, checked on 2.13.0 and 2.15.0: `torch._C._construct_storage_from_data_pointer`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from memprof.simulation.fake_events import EventLog

_CPU = torch.device("cpu")
_make_storage = torch._C._construct_storage_from_data_pointer


@dataclass(frozen=True, slots=True)
class Layout:
    """One output of an operator: its geometry, and which of the operator's new storages it looks into."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    storage: int


@dataclass(frozen=True, slots=True)
class Result:
    """What an operator returns for arguments of one geometry.

    Attributes:
        storages: bytes of each storage that it makes.
        shape: a `Layout`, a list or tuple of such shapes, or a value to hand out as it is.
        aliases: an output looks into an argument although the schema does not say so.
        resized: the new geometry of each argument that the operator resizes, by its place among the tensors.
        largest: bytes of its largest output, written out in full.
        floating: an output is floating-point or complex.
    """

    storages: tuple[int, ...]
    shape: Any
    aliases: bool = False
    resized: tuple[tuple[int, Layout], ...] = ()
    largest: int = 0
    floating: bool = False


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among an operator's arguments or outputs, those in lists too."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [item for item in value if isinstance(item, Tensor)]
    return found


class FakeTensors:
    """Makes fake tensors, and asks PyTorch's own fake kernels what an operator returns.

    Args:
        log: told of every storage that is made.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._fakes = FakeTensorMode(allow_non_fake_inputs=True)

    def build(self, result: Result, host: bool = False) -> tuple[Any, list[int]]:
        """Return new tensors of that geometry, and the addresses of their storages, made in order."""
        storages, addresses = [], []
        for size in result.storages:
            address = self._log.new_address() if size else 0
            storage = _make_storage(address, _CPU, size)
            if size:
                self._log.allocated(storage, address, size, host)
                addresses.append(address)
            storages.append(storage)
        return _assemble(result.shape, storages), addresses

    def evaluate(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Result:
        """Run the operator's fake kernel on stand-ins of the same geometry and return what comes out.

        Raises:
            Exception: what the fake kernel raises: wrong shapes, or an output that depends on values.
        """
        with torch.no_grad(), self._fakes:
            fake_args, fake_kwargs = _stand_in(args), {name: _stand_in(value) for name, value in kwargs.items()}
            given = tensors_in((*fake_args, *fake_kwargs.values()))
            before = [tensor.shape for tensor in given]
            output = func(*fake_args, **fake_kwargs)
        result = _Description(given).result(output)
        resized = [(n, _layout(t, 0)) for n, t in enumerate(given) if t.shape != before[n]]
        return result if not resized else Result(result.storages, result.shape, resized=tuple(resized))


def _stand_in(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise NotImplementedError(f"a tensor of layout {value.layout}")
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    if isinstance(value, (list, tuple)):
        return type(value)(_stand_in(item) for item in value)
    return value


class _Description:
    """Takes down what an operator returned."""

    def __init__(self, given: list[Tensor]) -> None:
        self._known = {tensor.untyped_storage()._cdata for tensor in given}
        self._numbers: dict[int, int] = {}
        self._sizes: list[int] = []
        self._aliases = self._floating = False
        self._largest = 0

    def result(self, output: Any) -> Result:
        shape = self._take(output)
        return Result(tuple(self._sizes), shape, self._aliases, (), self._largest, self._floating)

    def _take(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._take(item) for item in value)
        if not isinstance(value, Tensor):
            return value
        storage = value.untyped_storage()
        self._aliases |= storage._cdata in self._known
        self._floating |= value.is_floating_point() or value.is_complex()
        self._largest = max(self._largest, value.numel() * value.element_size())
        number = self._numbers.setdefault(storage._cdata, len(self._sizes))
        if number == len(self._sizes):
            self._sizes.append(storage.nbytes())
        return _layout(value, number)


def _layout(tensor: Tensor, storage: int) -> Layout:
    return Layout(tuple(tensor.shape), tensor.stride(), tensor.dtype, int(tensor.storage_offset()), storage)


def _assemble(shape: Any, storages: list[torch.UntypedStorage]) -> Any:
    if isinstance(shape, Layout):
        tensor = torch.empty(0, dtype=shape.dtype)
        return tensor.set_(storages[shape.storage], shape.offset, shape.size, shape.stride)  # type: ignore[call-overload]
    if isinstance(shape, (list, tuple)):
        return type(shape)(_assemble(item, storages) for item in shape)
    return shape
