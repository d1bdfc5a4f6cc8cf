"""The simulated GPU that a program sees: within `simulated_cuda`, `torch.cuda` answers as that GPU would.

| what a program asks | who answers |
|---|---|
| functions of `torch.cuda` and `torch.accelerator` | PyTorch's own, over `memprof.prediction.cuda.binding` |
| memory | the caching allocator, replayed live (`memprof.prediction.cuda.device_memory`) |
| streams and events | PyTorch's own classes (`memprof.prediction.cuda.streams`) |
| where a tensor is, and where it goes | a function mode (`memprof.prediction.cuda.host_and_device`) |
| Triton | launches without kernels (`memprof.prediction.cuda.triton_launches`) |
| what is not modelled | a sentence (`memprof.prediction.cuda.refusals`) |

A GPU has no time here: events measure the host's, and nothing is ever waited for.

Private API of PyTorch, checked on 2.13.0: `torch.cuda._initialized` and its neighbours, `torch._C._has_cuda`,
`torch._C._has_cudnn`, `torch._C._nn._parse_to`, `torch.cuda.nvtx._nvtx`, `torch.backends.cudnn._init`,
`torch._C._can_use_flash_attention` and its like.
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
    """Within the `with` block a program finds the target's GPU, whose tensors are those of the fake operators.

    Args:
        mode: runs the operators; it is entered by the caller, within.
        target: the GPU.
        limited: an allocation that does not fit raises `torch.OutOfMemoryError`; else memory is without end, for one
            that judges afterwards.
        devices: how many GPUs the program sees. It uses one of them.
        index: of the one that is selected at first.

    Yields:
        what tells the device from the host.
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
    """Give `torch._C` what a build with CUDA has, and refuse the rest of it by name."""
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
    """Take a number for a GPU, which a build without one cannot."""

    def parse_to(*args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], int) and not isinstance(args[0], bool):
            args = (torch.device("cuda", args[0]), *args[1:])
        if isinstance(kwargs.get("device"), int):
            kwargs = {**kwargs, "device": torch.device("cuda", kwargs["device"])}
        return parse(*args, **kwargs)

    return parse_to


@contextmanager
def _named(target: Target, binding: Binding, streams: Streams) -> Iterator[None]:
    """Replace what the modules of PyTorch keep under names of their own."""
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
    """Return a class that makes CUDA's streams or events, and knows those of any device."""

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
    """Say of cuDNN, NCCL, NVTX and the attention kernels that they are there."""
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
    """Put a sentence in the place of what has no answer."""
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
