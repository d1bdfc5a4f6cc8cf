"""What is on the device and what is on the host, in a training whose fake tensors all say `cpu`.

| code | on CUDA, and here |
|---|---|
| `torch.zeros(3)`, `torch.tensor(0.0, device="cpu")` | on the host, with what is computed from it alone |
| `torch.zeros(3, device="cuda")`, `device=x.device` | on the device |
| `.to("cuda")`, `.cuda()`, `.to(x.device)` | a copy if the tensor is on the host |
| `.cpu()` | a copy on the host if the tensor is on the device |
| `.is_cuda`, `.get_device()` | yes and 0 for what is on the device |
| `torch.autocast("cuda")` | that of the fake tensors, with CUDA's lists and its float16 |

Not told apart: `x.device` says `cpu`, which is taken for the device; so is `"cpu"` in `.to`, as code has it that asked
`torch.cuda.is_available()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from memprof.prediction.fake.dispatch import FakeOperators
from memprof.trace.storages import plain_tensors

aten = torch.ops.aten
_CPU = torch.device("cpu")
_NAMES = (
    *("zeros", "ones", "empty", "full", "arange", "range", "linspace", "logspace", "eye", "rand", "randn", "randint"),
    *("randperm", "normal", "empty_strided", "tril_indices", "triu_indices", "scalar_tensor", "tensor", "as_tensor"),
    *("hann_window", "hamming_window", "blackman_window", "bartlett_window", "kaiser_window", "from_numpy"),
)
_FACTORIES = tuple(getattr(torch, name) for name in _NAMES)
_RECURRENT = tuple(getattr(torch, name) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"))
_RECURRENT_GUESS = "on a GPU that is cuDNN's, whose reserve is not known; predicted is what a CPU keeps"
_IS_CUDA = Tensor.is_cuda.__get__  # type: ignore[attr-defined]
_Handler = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


class CudaIsHere(TorchFunctionMode):
    """Takes `"cuda"` for the device that the fake tensors are on, and keeps it apart from the host.

    Args:
        mode: runs the operators.
    """

    def __init__(self, mode: FakeOperators) -> None:
        super().__init__()
        self._mode = mode
        self._handlers: dict[Any, _Handler] = {
            **dict.fromkeys(_FACTORIES, self._make),
            **dict.fromkeys(_RECURRENT, self._run_recurrent),
            Tensor.to: self._to,
            Tensor.cpu: lambda func, args, kwargs: copy_to(args[0], mode, host=True),
            Tensor.cuda: lambda func, args, kwargs: copy_to(args[0], mode, host=False),
            Tensor.get_device: lambda func, args, kwargs: -1 if self._on_host(args[0]) else 0,
            _IS_CUDA: lambda func, args, kwargs: not self._on_host(args[0]),
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function of torch, or read an attribute of a tensor: most of a million calls go straight through."""
        handler = self._handlers.get(func)
        if handler is not None:
            return handler(func, args, kwargs or {})
        if not kwargs:
            return func(*args)
        if "device" in kwargs and _is_cuda(kwargs["device"]):
            kwargs = {**kwargs, "device": _CPU}
        return func(*args, **kwargs)

    def _run_recurrent(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._mode.reads.guess(self._mode.place()[0], f"runs {func.__name__}: {_RECURRENT_GUESS}")
        return func(*args, **kwargs)

    def _on_host(self, tensor: Tensor) -> bool:
        """Of a DTensor, its part on this rank."""
        parts = list(plain_tensors(tensor)) if tensor.layout is torch.strided else []
        return bool(parts) and all(self._mode.log.is_host(part.untyped_storage().data_ptr()) for part in parts)

    def _make(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        device = kwargs.get("device")
        if device is None:
            with self._mode.made_on(host=True):
                return func(*args, **kwargs)
        if not _is_cuda(device):
            made = func(*args, **kwargs)
            stays = self._mode.building_host or not isinstance(device, torch.device)
            return made if stays else copy_to(made, self._mode, host=False)
        with self._mode.made_on(host=False):
            return copy_to(func(*args, **{**kwargs, "device": _CPU}), self._mode, host=False)

    def _to(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Copy over if a device is asked for, and change the type on the way."""
        tensor, *rest = args
        asked = [*rest[:1], *([kwargs["device"]] if kwargs.get("device") is not None else ())]
        cuda = any(map(_is_cuda, asked))
        moved = cuda or any(_means_device(value) for value in asked)
        rest = [
            _CPU if _is_cuda(value) and not isinstance(value, bool) and place == 0 else value
            for place, value in enumerate(rest)
        ]
        if cuda and "device" in kwargs:
            kwargs = {**kwargs, "device": _CPU}
        if not moved or not self._on_host(tensor) or (self._mode.building_host and not cuda):
            return tensor.to(*rest, **kwargs)
        types = [value for value in (*rest, *kwargs.values()) if isinstance(value, torch.dtype)]
        dtype = next(iter(types), rest[0].dtype if rest and isinstance(rest[0], Tensor) else None)
        return copy_to(tensor, self._mode, host=False, dtype=dtype)


def _means_device(value: Any) -> bool:
    return isinstance(value, (torch.device, Tensor))


def _is_cuda(device: Any) -> bool:
    if isinstance(device, str):
        return device.startswith("cuda")
    if isinstance(device, int):
        return not isinstance(device, bool)
    return isinstance(device, torch.device) and device.type == "cuda"


def copy_to(value: Tensor, mode: FakeOperators, *, host: bool, dtype: torch.dtype | None = None) -> Tensor:
    """Return a copy on the host or on the device; the tensor itself if it is there already."""
    if value.layout is not torch.strided or not value.untyped_storage().nbytes():
        return value
    if mode.log.is_host(value.untyped_storage().data_ptr()) is host:
        return value if dtype is None or value.dtype is dtype else value.to(dtype)
    with mode.made_on(host=host):
        copy: Tensor = aten._to_copy(value, dtype=dtype)
    return copy


@contextmanager
def cuda_in_backward(cuda: CudaIsHere) -> Iterator[None]:
    """Within the `with` block the backward pass runs under the mode, which PyTorch turns off in every call it takes.

    Hooks, optimizers in them, and forwards that are run again are the user's code.

    Private API (see `memprof.torch_private`): `torch.autograd._engine_run_backward`.
    """
    run: Callable[..., Any] = torch.autograd._engine_run_backward  # type: ignore[attr-defined]

    def run_backward(*args: Any, **kwargs: Any) -> Any:
        with cuda:
            return run(*args, **kwargs)

    with patch.object(torch.autograd, "_engine_run_backward", run_backward):
        yield


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Within the `with` block `torch.autocast("cuda")` is that of the fake tensors."""
    init, enabled, dtype_of = torch.autocast.__init__, torch.is_autocast_enabled, torch.get_autocast_dtype

    def begin(self: Any, device_type: str, dtype: torch.dtype | None = None, *args: Any, **kwargs: Any) -> None:
        if device_type == "cuda":
            device_type, dtype = "cpu", dtype or torch.float16
        init(self, device_type, dtype, *args, **kwargs)

    with (
        patch.object(torch.autocast, "__init__", begin),
        patch.object(torch, "is_autocast_enabled", lambda device="cpu": enabled("cpu" if device == "cuda" else device)),
        patch.object(torch, "get_autocast_dtype", lambda device: dtype_of("cpu" if device == "cuda" else device)),
    ):
        yield


@contextmanager
def cuda_modules(mode: FakeOperators) -> Iterator[None]:
    """Within the `with` block `Module.cuda()` moves what is on the host."""

    def move(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        return module._apply(lambda tensor: copy_to(tensor, mode, host=False))  # type: ignore[no-any-return]

    with patch.object(nn.Module, "cuda", move):
        yield
