"""Simulates a GPU for a program: within `simulated_cuda`, `torch.cuda` behaves as it would with that GPU.

| what the program uses | what implements it |
|---|---|
| functions of `torch.cuda` and `torch.accelerator` | PyTorch's own code, on `memprof.prediction.cuda.binding` |
| memory | the caching allocator, replayed live (`memprof.prediction.cuda.device_memory`) |
| streams and events | PyTorch's own classes (`memprof.prediction.cuda.streams`) |
| the device of a tensor, and copies between devices | a function mode (`memprof.prediction.cuda.host_and_device`) |
| Triton | launches that run no kernel (`memprof.prediction.cuda.triton_launches`) |
| anything that is not modelled | an error of one sentence (`memprof.prediction.cuda.refusals`) |

A simulated GPU has no clock: events measure the time of the host, and every wait returns at once.

Private API of PyTorch, checked on 2.13.0: `torch.cuda._initialized` and its neighbours, `torch._C._has_cuda`,
`torch._C._has_cudnn`, `torch._C._nn._parse_to`, `torch.cuda.nvtx._nvtx`, `torch.backends.cudnn._init`,
`torch._C._can_use_flash_attention` and the same for other kernels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from memprof.devices.target import Target
from memprof.prediction.cuda.attention import choose_attention
from memprof.prediction.cuda.binding import CUDNN_VERSION, Binding, cuda_version
from memprof.prediction.cuda.device_memory import DeviceMemory
from memprof.prediction.cuda.generators import make_generator_class
from memprof.prediction.cuda.host_and_device import (
    CudaIsHere,
    cuda_autocast,
    cuda_groups,
    cuda_in_backward,
    cuda_in_hooks,
    legacy_types,
)
from memprof.prediction.cuda.refusals import (
    REFUSED,
    REFUSED_OF_ACCELERATOR,
    REFUSED_OF_MEMORY,
    Refusal,
    legacy_storage,
    refusal_of,
)
from memprof.prediction.cuda.streams import Streams
from memprof.prediction.cuda.triton_launches import triton_without_kernels
from memprof.prediction.fake.dispatch import FakeOperators
from memprof.prediction.fake.higher_order import traced_outside_modes
from memprof.prediction.fake.threads import threads_within


@contextmanager
def simulated_cuda(
    mode: FakeOperators, target: Target, *, limited: bool = True, devices: int = 1, index: int = 0
) -> Iterator[CudaIsHere]:
    """Simulate the target's GPU for a program within the `with` block. Its tensors are those of the fake operators.

    Args:
        mode: Runs the operators. The caller enters it within the `with` block.
        target: The GPU.
        limited: Whether an allocation that does not fit raises `torch.OutOfMemoryError`. Otherwise the memory is
            unlimited, and the caller checks afterwards whether the training fits.
        devices: The number of GPUs that the program sees. It uses one of them.
        index: The index of the GPU that is current at first.

    Yields:
        The function mode that keeps the device apart from the host.
    """
    memory = DeviceMemory(target, limited)
    streams = Streams(mode.log, index)
    binding = Binding(target, memory, mode, streams, devices, index)
    cuda = CudaIsHere(mode, lambda: binding.index, devices)
    with ExitStack() as stack:
        stack.enter_context(_served_by(mode, memory))
        for part in (_bound(binding), _named(target, binding, streams), _libraries(target), _refusing()):
            stack.enter_context(part)
        for part in (cuda_autocast(), cuda_groups(cuda), cuda_in_backward(cuda), cuda_in_hooks(cuda)):
            stack.enter_context(part)
        stack.enter_context(triton_without_kernels(binding))
        stack.enter_context(threads_within(lambda: cuda))
        stack.enter_context(traced_outside_modes())
        stack.enter_context(cuda)
        yield cuda


@contextmanager
def _served_by(mode: FakeOperators, memory: DeviceMemory) -> Iterator[None]:
    before, mode.log.memory = mode.log.memory, memory
    try:
        yield
    finally:
        mode.log.memory = before


@contextmanager
def _bound(binding: Binding) -> Iterator[None]:
    """Give `torch._C` the functions of a build with CUDA, and make those that are not modelled raise an error."""
    functions: dict[str, Any] = dict(binding.functions())
    for name in dir(torch._C):
        if name.startswith("_cuda_") and callable(getattr(torch._C, name)):
            functions.setdefault(name, Refusal(f"torch._C.{name}"))
    with (
        patch.multiple(torch._C, create=True, **functions),
        patch.multiple(torch._C, create=True, _has_cuda=True, _has_cudnn=True, __getattr__=binding.unknown),
        patch.object(torch._C._nn, "_parse_to", _parse_to(torch._C._nn._parse_to, binding)),
    ):
        yield


def _parse_to(parse: Callable[..., Any], binding: Binding) -> Callable[..., Any]:
    """Return a parser of the arguments of `Module.to` that takes an integer as the index of a GPU."""

    def parse_to(*args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], int) and not isinstance(args[0], bool):
            args = (torch.device("cuda", args[0]), *args[1:])
        if isinstance(kwargs.get("device"), int):
            kwargs = {**kwargs, "device": torch.device("cuda", kwargs["device"])}
        return parse(*args, **kwargs)

    return parse_to


@contextmanager
def _named(target: Target, binding: Binding, streams: Streams) -> Iterator[None]:
    """Replace the names that modules of PyTorch have imported from `torch._C` or made themselves."""
    original_stream, original_event = torch.Stream, torch.Event
    generator = make_generator_class(torch.device("cuda", binding.index))
    generators = tuple(generator("cuda") for _ in range(binding.devices))
    for one in generators:
        one.manual_seed(torch.initial_seed())
    classes: dict[str, Any] = {name: getattr(streams.module, name) for name in ("Stream", "Event", "ExternalStream")}
    names: dict[str, Any] = {
        "_initialized": True,
        "_is_in_bad_fork": lambda: False,
        "_cached_device_count": None,
        "_cudart": binding.runtime_api(),
        "_get_device_properties": lambda device: binding.properties,
        "_exchange_device": binding.exchange_device,
        "_maybe_exchange_device": binding.exchange_device,
        "default_generators": generators,
        "device_memory_used": lambda device=None: binding.used_bytes(),
        "list_gpu_processes": lambda device=None: binding.processes(),
        **classes,
        **legacy_types(),
    }
    with (
        patch.multiple(torch.cuda, create=True, **names),
        patch.multiple(torch.cuda.streams, **classes),
        patch.object(torch.cuda.graphs, "_cuda_isCurrentStreamCapturing", lambda: False),
        patch.object(torch.cuda.memory, "list_gpu_processes", lambda device=None: binding.processes()),
        patch.object(torch, "Generator", generator),
        patch.object(torch, "Stream", _made_as(original_stream, classes["Stream"])),
        patch.object(torch, "Event", _made_as(original_event, classes["Event"])),
        patch.object(torch.version, "cuda", cuda_version(target.torch_version)),
    ):
        yield


def _made_as(original: type[Any], wanted: type[Any]) -> type[Any]:
    """Return a class that makes streams or events of CUDA, and counts those of any device as its instances."""

    class AnyDevice(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, original)

    def make(cls: type[Any], device: Any = None, *args: Any, **kwargs: Any) -> Any:
        if device is None or isinstance(device, int) or torch.device(device).type == "cuda":
            return wanted(**kwargs)
        return original(device, *args, **kwargs)

    return AnyDevice(original.__name__, (), {"__new__": make, "__module__": "torch"})


@contextmanager
def _libraries(target: Target) -> Iterator[None]:
    """Report cuDNN, NCCL, NVTX and the attention kernels as available."""
    depth = itertools.count()
    ranges = SimpleNamespace(
        rangePushA=lambda message: 0,
        rangePop=lambda: 0,
        rangeStartA=lambda message: next(depth),
        rangeEnd=lambda number: None,
        markA=lambda message: None,
        deviceRangeStart=lambda message, stream: None,
        deviceRangeEnd=lambda handle, stream: None,
    )

    def takes(backend: str, params: Any, debug: bool = False) -> bool:
        query, key, value = params.query, params.key, params.value
        chosen = choose_attention(
            target, query, key, value, params.attn_mask, params.dropout, params.is_causal, params.enable_gqa, (backend,)
        )
        return chosen == backend

    attention: dict[str, Any] = {
        "_is_flash_attention_available": lambda: target.capability >= (8, 0),
        "_can_use_flash_attention": partial(takes, "flash"),
        "_can_use_mem_efficient_attention": partial(takes, "efficient"),
        "_can_use_cudnn_attention": partial(takes, "cudnn"),
    }
    with (
        patch.object(torch.cuda.nvtx, "_nvtx", ranges),
        patch.multiple(torch.backends.cudnn, _init=lambda: True, version=lambda: CUDNN_VERSION),
        patch.multiple(torch._C, create=True, **attention),
        patch.object(torch.distributed, "is_nccl_available", lambda: True),
    ):
        yield


@contextmanager
def _refusing() -> Iterator[None]:
    """Replace the functions and classes that are not modelled by ones that raise an error."""
    old = [name for name in dir(torch.cuda) if name.endswith("Storage")]
    storages = {name: legacy_storage(name, getattr(torch.cuda, name)) for name in old}
    tables = (
        (torch.cuda, "torch.cuda", REFUSED),
        (torch.cuda.memory, "torch.cuda", REFUSED),
        (torch.cuda.graphs, "torch.cuda", REFUSED),
        (torch.cuda.memory, "torch.cuda.memory", REFUSED_OF_MEMORY),
        (torch.accelerator, "torch.accelerator", REFUSED_OF_ACCELERATOR),
    )
    with ExitStack() as stack:
        stack.enter_context(patch.multiple(torch.cuda, **storages))
        for module, prefix, names in tables:
            here = {name: why for name, why in names.items() if hasattr(module, name)}
            found = {name: refusal_of(f"{prefix}.{name}", getattr(module, name), why) for name, why in here.items()}
            stack.enter_context(patch.multiple(module, **found))
        yield
