"""Keeps track of which tensors are on the device and which on the host, as all fake tensors claim to be on the CPU.

| code | result on CUDA, and in the simulation |
|---|---|
| `torch.zeros(3)`, `torch.tensor(0.0, device="cpu")` | on the host, and so are tensors computed from it alone |
| `torch.zeros(3, device="cuda")`, `device=x.device`, a default device | on the device |
| `.to("cuda")`, `.cuda()`, `.to(x.device)`, `.to(x)` | a copy if the tensor is on the host |
| `.cpu()`, `.to("cpu")` | a copy on the host if the tensor is on the device |
| `.device`, `.is_cuda`, `.is_cpu`, `.get_device()`, `.type()` | name the GPU (`cuda:0`) for a tensor on the device |
| `.pin_memory()`, `pin_memory=True` | on the host |
| `torch.device(0)` | `cuda:0` |
| `torch.autocast("cuda")` | the autocast of the fake tensors, with CUDA's operator lists and CUDA's default, float16 |

PyTorch turns a function mode off within every function that it handles, so Python code of PyTorch's own functions
(`torch.nn.functional`) finds `cpu` in `x.device`. A tensor that it makes on that device is where its arguments are, as
the code intends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils import _device as default_device

from memprof.prediction.fake.dispatch import FakeOperators
from memprof.trace.storages import is_plain, plain_tensors

aten = torch.ops.aten
_CPU = torch.device("cpu")
_NAMES = (
    *("zeros", "ones", "empty", "full", "arange", "range", "linspace", "logspace", "eye", "rand", "randn", "randint"),
    *("randperm", "normal", "empty_strided", "tril_indices", "triu_indices", "scalar_tensor", "tensor", "as_tensor"),
    *("hann_window", "hamming_window", "blackman_window", "bartlett_window", "kaiser_window", "from_numpy"),
    *("asarray", "frombuffer", "empty_permuted"),
)
_FACTORIES = tuple(getattr(torch, name) for name in _NAMES)
# Without a device these make a tensor where the tensor that they are given is.
_FOLLOW = (torch.tensor, torch.as_tensor, torch.asarray, torch.normal)
_RECURRENT = tuple(getattr(torch, name) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"))
_RECURRENT_GUESS = "on a GPU that is cuDNN's, whose reserve is not known; predicted is what a CPU keeps"
_DEVICE, _IS_CUDA, _IS_CPU = (getattr(Tensor, name).__get__ for name in ("device", "is_cuda", "is_cpu"))
_PINNED = "_memprof_pinned"  # an attribute of the storage of a tensor in pinned memory
_AFTER_DEVICE, _AFTER_OTHER = ("dtype", "non_blocking", "copy"), ("non_blocking", "copy")
_Handler = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
_Place = Literal["host", "device", "elsewhere"]


class CudaIsHere(TorchFunctionMode):
    """A function mode in which `"cuda"` is the simulated device, apart from the host.

    Args:
        mode: Runs the operators.
        current: Returns the index of the current GPU.
        devices: The number of GPUs.
    """

    def __init__(self, mode: FakeOperators, current: Callable[[], int] = lambda: 0, devices: int = 1) -> None:
        super().__init__()
        self._mode = mode
        self._current = current
        self._devices = devices
        self._handlers: dict[Any, _Handler] = {
            **dict.fromkeys(_FACTORIES, self._make),
            **dict.fromkeys(_RECURRENT, self._run_recurrent),
            torch.device: self._numbered,
            Tensor.to: self._to,
            Tensor.type: self._type,
            Tensor.cpu: lambda func, args, kwargs: copy_to(args[0], mode, host=True),
            Tensor.cuda: self._cuda,
            Tensor.new_tensor: self._like,
            Tensor.pin_memory: lambda func, args, kwargs: self._pin(args[0]),
            Tensor.is_pinned: lambda func, args, kwargs: hasattr(args[0].untyped_storage(), _PINNED),
            Tensor.record_stream: lambda func, args, kwargs: None,
            Tensor.get_device: lambda func, args, kwargs: -1 if self._on_host(args[0]) else self._current(),
            _DEVICE: lambda func, args, kwargs: self.device_of(args[0]),
            _IS_CUDA: lambda func, args, kwargs: self.device_of(args[0]).type == "cuda",
            _IS_CPU: lambda func, args, kwargs: self.device_of(args[0]).type == "cpu",
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function of torch, or read an attribute of a tensor. Most of the many calls pass through unchanged."""
        handler = self._handlers.get(func)
        if handler is not None:
            return handler(func, args, kwargs or {})
        if not kwargs:
            return func(*args)
        if kwargs.get("device") is not None or kwargs.get("pin_memory"):
            return self._make(func, args, kwargs)
        return func(*args, **kwargs)

    def entered(self) -> AbstractContextManager[Any]:
        """Return a context that switches the mode on, unless it is on already."""
        return nullcontext() if any(mode is self for mode in _get_current_function_mode_stack()) else self

    @property
    def cuda(self) -> torch.device:
        """The current GPU."""
        return torch.device("cuda", self._current())

    def device_of(self, tensor: Tensor) -> torch.device:
        """Return the device of a tensor as the program sees it."""
        with torch._C.DisableTorchFunction():
            device = tensor.device
            if device.type != "cpu":
                return device
            return _CPU if self._on_host(tensor) else self.cuda

    def place(self, device: Any) -> _Place:
        """Return whether a device that the program names is the host, the simulated device, or neither.

        Args:
            device: A device, its name, or the index of a GPU.

        Raises:
            torch.AcceleratorError: No GPU has this index.
        """
        if isinstance(device, int):
            index: int | None = device
        else:
            named = torch.device(device) if isinstance(device, str) else device
            if named.type != "cuda":
                return "host" if named.type == "cpu" else "elsewhere"
            index = named.index
        if index is not None and index >= self._devices:
            raise torch.AcceleratorError("CUDA error: invalid device ordinal")
        return "device"

    def _numbered(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the GPU for an index. In a build without CUDA, `torch.device(0)` is not a GPU."""
        return torch.device("cuda", args[0]) if args and isinstance(args[0], int) else func(*args, **kwargs)

    def _run_recurrent(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._mode.reads.guess(self._mode.place()[0], f"runs {func.__name__}: {_RECURRENT_GUESS}")
        return func(*args, **kwargs)

    def _on_host(self, tensor: Tensor) -> bool:
        """Return whether a tensor is on the host. One with inner tensors, such as a DTensor, is there if all are."""
        if is_plain(tensor):
            return self._mode.on_host(tensor)
        parts = list(plain_tensors(tensor))
        return bool(parts) and all(self._mode.on_host(part) for part in parts)

    def _make(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        device = kwargs.get("device")
        if device is None and default_device.CURRENT_DEVICE is not None:
            device = default_device.CURRENT_DEVICE if func in default_device._device_constructors() else None
        if device is None and args and isinstance(args[0], Tensor) and func in _FOLLOW:
            return func(*args, **kwargs)
        place = "host" if device is None else self.place(device)
        if place == "elsewhere":
            return func(*args, **kwargs)
        pinned = kwargs.get("pin_memory")
        if device is not None:
            kwargs = {**kwargs, "device": _CPU}
        if pinned:
            kwargs = {**kwargs, "pin_memory": False}
        with self._mode.made_on(host=place == "host"):
            made = func(*args, **kwargs)
        if not isinstance(made, Tensor):
            return made
        if pinned:
            setattr(made.untyped_storage(), _PINNED, True)
        return made if device is None else copy_to(made, self._mode, host=place == "host")

    def _like(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a tensor of numbers on the device of the first argument."""
        return self._make(func, args, {**kwargs, "device": kwargs.get("device") or self.device_of(args[0])})

    def _to(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Copy the tensor if another device is asked for, and change its type in the same copy."""
        tensor, *rest = args
        named = dict(kwargs)
        first = rest[0] if rest else named.get("other")
        device: Any
        if isinstance(first, Tensor):
            named.pop("other", None)
            named.update(zip(_AFTER_OTHER, rest[1:], strict=False))
            named["dtype"], device = first.dtype, self.device_of(first)
        elif isinstance(first, (str, torch.device, int)):
            named.update(zip(_AFTER_DEVICE, rest[1:], strict=False))
            device = first
        else:
            device = named.pop("device", None)
        if device is None:
            return func(*args, **kwargs)
        place = self.place(device)
        if place == "elsewhere" or tensor.is_meta:
            return func(tensor, device=device if place == "elsewhere" else _CPU, **named)
        if self._on_host(tensor) is (place == "host"):
            return func(tensor, **named) if named else tensor
        return copy_to(
            tensor, self._mode, host=place == "host", dtype=named.get("dtype"), format_=named.get("memory_format")
        )

    def _cuda(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        device = args[1] if len(args) > 1 else kwargs.get("device")
        self.place("cuda" if device is None else device)
        return copy_to(args[0], self._mode, host=False)

    def _pin(self, tensor: Tensor) -> Tensor:
        if not self._on_host(tensor):
            raise RuntimeError(
                f"cannot pin '{tensor_type(tensor.dtype, cuda=True)}' only dense CPU tensors can be pinned"
            )
        if hasattr(tensor.untyped_storage(), _PINNED):
            return tensor
        with self._mode.made_on(host=True):
            pinned: Tensor = aten.clone(tensor)
        setattr(pinned.untyped_storage(), _PINNED, True)
        return pinned

    def _type(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the name of the type, or change the type. `torch.cuda.FloatTensor` and its like set the device too."""
        tensor = args[0]
        wanted = args[1] if len(args) > 1 else kwargs.get("dtype")
        if wanted is None:
            return tensor_type(tensor.dtype, cuda=not self._on_host(tensor))
        if isinstance(wanted, torch.dtype):
            return tensor.to(wanted)
        name = wanted if isinstance(wanted, str) else f"{wanted.__module__}.{wanted.__name__}"
        dtype = _DTYPES[name.rpartition(".")[2]]
        return copy_to(tensor, self._mode, host=not name.startswith("torch.cuda."), dtype=dtype)


_TYPES = {
    torch.float32: "FloatTensor",
    torch.float64: "DoubleTensor",
    torch.float16: "HalfTensor",
    torch.bfloat16: "BFloat16Tensor",
    torch.uint8: "ByteTensor",
    torch.int8: "CharTensor",
    torch.int16: "ShortTensor",
    torch.int32: "IntTensor",
    torch.int64: "LongTensor",
    torch.bool: "BoolTensor",
}
_DTYPES = {name: dtype for dtype, name in _TYPES.items()}


def tensor_type(dtype: torch.dtype, *, cuda: bool) -> str:
    """Return the name of a legacy tensor type, such as `torch.cuda.FloatTensor`.

    Args:
        dtype: The type of the entries.
        cuda: Whether the tensor is on a GPU.
    """
    return f"torch.{'cuda.' if cuda else ''}{_TYPES.get(dtype, 'Tensor')}"


def legacy_types() -> dict[str, type[Any]]:
    """Return the classes that replace the legacy types such as `torch.cuda.FloatTensor`, by name."""
    return {name: _legacy_type(name, dtype) for dtype, name in _TYPES.items()}


def _legacy_type(name: str, dtype: torch.dtype) -> type[Any]:
    class Legacy(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, Tensor) and instance.dtype is dtype and instance.is_cuda

    def make(cls: type[Any], *args: Any, **kwargs: Any) -> Tensor:
        if args and all(isinstance(size, int) for size in args):
            return torch.empty(args, dtype=dtype, device="cuda")
        if not args or isinstance(args[0], torch.Size):
            return torch.empty(args[0] if args else 0, dtype=dtype, device="cuda")
        return torch.tensor(args[0], dtype=dtype, device="cuda")

    return Legacy(name, (), {"__new__": make, "__module__": "torch.cuda", "dtype": dtype, "is_cuda": True})


def copy_to(
    value: Tensor,
    mode: FakeOperators,
    *,
    host: bool,
    dtype: torch.dtype | None = None,
    format_: torch.memory_format | None = None,
) -> Tensor:
    """Return a copy of a tensor on the host or on the device; the tensor itself if it is there already.

    Args:
        value: The tensor.
        mode: Runs the operators.
        host: Whether the copy is on the host.
        dtype: The type of the copy; None to keep the type.
        format_: The memory format of the copy; None to keep the format.
    """
    with torch._C.DisableTorchFunction():
        if value.is_meta:
            return value
        parts = [value] if is_plain(value) else list(plain_tensors(value))
        stays = all(mode.on_host(part) is host for part in parts)
        changes = dtype is not None and value.dtype is not dtype
    if stays:
        return value.to(dtype) if changes else value
    with mode.made_on(host=host):
        copy: Tensor = aten._to_copy(value, dtype=dtype, memory_format=format_)
    return copy


@contextmanager
def cuda_in_backward(cuda: CudaIsHere) -> Iterator[None]:
    """Run the backward pass under the mode within the `with` block.

    PyTorch turns the mode off in every call that the mode handles, but the backward pass runs code of the user: hooks,
    optimizers within hooks, and recomputed forward passes.

    Args:
        cuda: The mode.

    Private API (see `memprof.torch_private`): `torch.autograd._engine_run_backward`.
    """
    run: Callable[..., Any] = torch.autograd._engine_run_backward  # type: ignore[attr-defined]

    def run_backward(*args: Any, **kwargs: Any) -> Any:
        with cuda.entered():
            return run(*args, **kwargs)

    with patch.object(torch.autograd, "_engine_run_backward", run_backward):
        yield


@contextmanager
def cuda_in_hooks(cuda: CudaIsHere) -> Iterator[None]:
    """Run saved-tensor hooks under the mode within the `with` block, as it is off where autograd calls them.

    Args:
        cuda: The mode.
    """
    begin = torch.autograd.graph.saved_tensors_hooks.__init__

    def within(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def run(value: Any) -> Any:
            with cuda.entered():
                return hook(value)

        return run

    def init(self: Any, pack: Callable[[Any], Any], unpack: Callable[[Any], Any]) -> None:
        begin(self, within(pack), within(unpack))

    with patch.object(torch.autograd.graph.saved_tensors_hooks, "__init__", init):
        yield


@contextmanager
def cuda_groups(cuda: CudaIsHere) -> Iterator[None]:
    """Make PyTorch group tensors by the device that the mode gives them within the `with` block.

    Args:
        cuda: The mode.

    Private API of PyTorch, checked on 2.13.0: `torch._C._group_tensors_by_device_and_dtype`.
    """
    group: Callable[..., Any] = torch._C._group_tensors_by_device_and_dtype

    def grouped(lists: Sequence[Sequence[Tensor | None]], with_indices: bool = False) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        hosts = [cuda.device_of(tensor).type == "cpu" for tensor in lists[0] if tensor is not None]
        if not any(hosts) or len(hosts) != len(lists[0]):
            return {(cuda.cuda, dtype): part for (_, dtype), part in group(lists, with_indices).items()}
        for host in (False, True):
            chosen = [number for number, here in enumerate(hosts) if here is host]
            if chosen:
                parts = group([[one[number] for number in chosen] if one else [] for one in lists], with_indices)
                for (_, dtype), (tensors, indices) in parts.items():
                    found[_CPU if host else cuda.cuda, dtype] = tensors, [chosen[number] for number in indices]
        return found

    with patch.object(torch._C, "_group_tensors_by_device_and_dtype", grouped):
        yield


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Make `torch.autocast("cuda")` apply to the fake tensors within the `with` block; `"cpu"` has no effect there."""
    init, enabled, dtype_of = torch.autocast.__init__, torch.is_autocast_enabled, torch.get_autocast_dtype
    set_enabled, set_dtype = torch.set_autocast_enabled, torch.set_autocast_dtype
    default = [torch.float16]  # the type of autocast on CUDA, until the program sets another

    def begin(
        self: Any,
        device_type: str,
        dtype: torch.dtype | None = None,
        enabled: bool = True,
        cache_enabled: bool | None = None,
    ) -> None:
        if device_type == "cuda":
            dtype = dtype or default[0]
        elif device_type == "cpu":
            enabled, dtype = torch.is_autocast_enabled("cpu"), dtype_of("cpu")
        init(self, "cpu" if device_type == "cuda" else device_type, dtype, enabled, cache_enabled)

    def here(device: str) -> str:
        return "cpu" if device == "cuda" else device

    def autocast_dtype(device: str) -> torch.dtype:
        return default[0] if device == "cuda" and not enabled("cpu") else dtype_of(here(device))

    def set_autocast_enabled(device: Any, on: bool | None = None) -> None:
        if on is None:  # the older form of the call, which means CUDA
            device, on = "cuda", device
        set_enabled(here(device), on)

    def set_autocast_dtype(device: str, dtype: torch.dtype) -> None:
        if device == "cuda":
            default[0] = dtype
        set_dtype(here(device), dtype)

    functions: dict[str, Any] = {
        "is_autocast_enabled": lambda device="cuda": enabled(here(device)),
        "get_autocast_dtype": autocast_dtype,
        "set_autocast_enabled": set_autocast_enabled,
        "set_autocast_dtype": set_autocast_dtype,
        "get_autocast_gpu_dtype": lambda: autocast_dtype("cuda"),
        "set_autocast_gpu_dtype": lambda dtype: set_autocast_dtype("cuda", dtype),
    }
    with patch.object(torch.autocast, "__init__", begin), patch.multiple(torch, **functions):
        yield
