"""Replaces the C++ functions behind `torch.cuda` and `torch.accelerator` by those of a simulated GPU.

The Python functions of `torch.cuda` are PyTorch's own, and call these (`torch/csrc/cuda/Module.cpp`,
`torch/csrc/DeviceAccelerator.cpp`). Names that are in no table here raise an error only when they are called, so that
a library can import them.

Private API of PyTorch, checked on 2.13.0: the names in `Binding.functions`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from memprof.devices.context import threads_per_sm
from memprof.devices.target import Target
from memprof.prediction.cuda.device_memory import DeviceMemory
from memprof.prediction.cuda.kernels import Workspaces
from memprof.prediction.cuda.refusals import PEERS, Refusal, refuse
from memprof.prediction.cuda.streams import Streams
from memprof.prediction.fake.dispatch import FakeOperators

# The versions of CUDA, cuDNN and NCCL in the wheels on PyPI
# (pytorch/pytorch, .github/scripts/generate_binary_build_matrix.py).
_CUDA_OF_TORCH = {(2, 6): "12.4", (2, 7): "12.6", (2, 8): "12.8", (2, 9): "12.8", (2, 10): "12.8"}
CUDA_SINCE = "13.0"
CUDNN_VERSION = 91501
_NCCL_VERSION = (2, 27, 5)
_ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
_REGISTERS = 65536
# The bytes of shared memory of a block (opt-in) and of a multiprocessor (CUDA C++ programming guide, capabilities).
_SHARED = {
    (7, 0): (98304, 98304),
    (7, 5): (65536, 65536),
    (8, 0): (166912, 167936),
    (8, 6): (101376, 102400),
    (8, 9): (101376, 102400),
    (9, 0): (232448, 233472),
    (10, 0): (232448, 233472),
    (10, 3): (232448, 233472),
    (12, 0): (101376, 102400),
}
_UNKNOWN_NAMES = ("_cuda_", "_nccl_", "_gds_", "_cudnn")
_UNKNOWN_IN_CPU_BUILDS = ("_broadcast_out", "_scatter_out", "_gather_out")


def cuda_version(torch_version: tuple[int, int]) -> str:
    """Return the CUDA version of PyTorch's default wheel.

    Args:
        torch_version: The version of PyTorch, major and minor.
    """
    return _CUDA_OF_TORCH.get(torch_version, CUDA_SINCE if torch_version > (2, 10) else "12.1")


class DeviceProperties:
    """Replaces the object that `torch.cuda.get_device_properties` returns. Unknown properties have no attribute.

    Args:
        target: The GPU.
    """

    def __init__(self, target: Target) -> None:
        self.name = target.title or target.name
        self.major, self.minor = target.capability
        self.total_memory = target.total_bytes or 0
        self.multi_processor_count = target.sm_count
        self.max_threads_per_multi_processor = threads_per_sm(target.capability)
        self.max_threads_per_block = 1024
        self.warp_size = 32
        self.regs_per_multiprocessor = _REGISTERS
        self.is_integrated = self.is_multi_gpu_board = 0
        self.shared_memory_per_block = 48 << 10
        self.pci_bus_id = self.pci_device_id = self.pci_domain_id = 0
        self.uuid = "00000000-0000-0000-0000-000000000000"
        if target.capability in _SHARED:
            self.shared_memory_per_block_optin, self.shared_memory_per_multiprocessor = _SHARED[target.capability]

    def __repr__(self) -> str:
        return (
            f"_CudaDeviceProperties(name='{self.name}', major={self.major}, minor={self.minor}, "
            f"total_memory={self.total_memory >> 20}MB, multi_processor_count={self.multi_processor_count})"
        )


class Binding:
    """The C++ functions of PyTorch for a simulated GPU, and their state.

    Args:
        target: The GPU.
        memory: The memory of the GPU.
        mode: Runs the operators. Its log notes emptied caches.
        streams: The streams of the GPU.
        devices: The number of GPUs that the program sees. All tensors are on the current one.
        index: The index of the current GPU.

    Attributes:
        properties: The properties of the GPU.
        devices: The number of GPUs that the program sees.
        index: The index of the current GPU.
    """

    def __init__(
        self, target: Target, memory: DeviceMemory, mode: FakeOperators, streams: Streams, devices: int, index: int
    ) -> None:
        self._target = target
        self._memory = memory
        self._mode = mode
        self._streams = streams
        self.devices = devices
        self._debug_mode = 0
        self._benchmark_limit = 10
        self.properties = DeviceProperties(target)
        self.index = index

    def functions(self) -> dict[str, Callable[..., Any]]:
        """Return the functions by their names in `torch._C`."""
        memory, streams = self._memory, self._streams

        def nothing(*args: Any, **kwargs: Any) -> None:
            """Do nothing, for functions that change no memory."""

        def answer(value: Any) -> Callable[..., Any]:
            return lambda *args, **kwargs: value

        return {
            "_cuda_init": nothing,
            "_cuda_isInBadFork": answer(False),
            "_cuda_getDeviceCount": answer(self.devices),
            "_cuda_getDevice": lambda: self.index,
            "_cuda_setDevice": self._set_device,
            "_cuda_exchangeDevice": self.exchange_device,
            "_cuda_maybeExchangeDevice": self.exchange_device,
            "_cuda_canDeviceAccessPeer": lambda device, peer: device != peer,
            "_cuda_getArchFlags": self._architectures,
            "_cuda_getCompiledVersion": self._compiled_version,
            "_cuda_synchronize": nothing,
            "_cuda_ipc_collect": nothing,
            "_cuda_sleep": nothing,
            "_cuda_isHistoryEnabled": answer(False),
            "_cuda_isCurrentStreamCapturing": answer(False),
            "_cuda_getCurrentStream": lambda device=None: streams.numbers(streams.current),
            "_cuda_getDefaultStream": lambda device=None: streams.numbers(0),
            "_cuda_getCurrentRawStream": lambda device=None: streams.current,
            "_cuda_setStream": self._set_stream,
            "_cuda_memoryStats": lambda device=None: memory.statistics(),
            "_cuda_resetPeakMemoryStats": lambda device=None: memory.reset_peaks(),
            "_cuda_resetAccumulatedMemoryStats": lambda device=None: memory.reset_accumulated(),
            "_cuda_resetPeakHostMemoryStats": nothing,
            "_cuda_resetAccumulatedHostMemoryStats": nothing,
            "_cuda_emptyCache": self._mode.log.empty_cache,
            "_cuda_clearCublasWorkspaces": self._clear_workspaces,
            "_cuda_getAllocatorBackend": answer("native"),
            "_cuda_cudaCachingAllocator_is_enabled": answer(True),
            "_cuda_hasPrimaryContext": answer(True),
            "_cuda_getMemoryFraction": lambda device=None: self._fraction(),
            "_cuda_setMemoryFraction": self._set_fraction,
            "_cuda_get_sync_debug_mode": lambda: self._debug_mode,
            "_cuda_set_sync_debug_mode": self._set_debug_mode,
            "_cuda_get_cudnn_benchmark_limit": lambda: self._benchmark_limit,
            "_cuda_set_cudnn_benchmark_limit": self._set_benchmark_limit,
            "_cuda_lock_mutex": nothing,
            "_cuda_unlock_mutex": nothing,
            "_cuda_tunableop_is_enabled": answer(False),
            "_cuda_tunableop_tuning_is_enabled": answer(False),
            "_cuda_record_untuned_is_enabled": answer(False),
            "_nccl_version": lambda: _NCCL_VERSION[0] << 32 | _NCCL_VERSION[1] << 16 | _NCCL_VERSION[2],
            "_nccl_version_suffix": lambda: b"",
            "_get_accelerator": lambda check=None: torch.device("cuda"),
            **self._copies(),
            **self._accelerator(),
        }

    def _copies(self) -> dict[str, Callable[..., Any]]:
        """Return the functions by which `torch.nn.DataParallel` copies, to one GPU (`torch/csrc/cuda/comm.cpp`)."""

        def scatter(tensor: Any, devices: Any, sizes: Any = None, dim: int = 0, streams: Any = None) -> list[Any]:
            self._check_alone("scatter", devices)
            return [tensor.to("cuda")]

        def gather(tensors: Any, dim: int, destination: int | None = None) -> Any:
            return torch.cat(list(tensors), dim).to("cpu" if destination == -1 else "cuda")

        def broadcast(tensor: Any, devices: Any) -> list[Any]:
            self._check_alone("broadcast", devices)
            return [tensor.to("cuda")]

        def broadcast_coalesced(tensors: Any, devices: Any, buffer_size: int = 0) -> list[Any]:
            self._check_alone("broadcast_coalesced", devices)
            return [list(tensors)]

        return {
            "_scatter": scatter,
            "_gather": gather,
            "_broadcast": broadcast,
            "_broadcast_coalesced": broadcast_coalesced,
        }

    def _check_alone(self, name: str, devices: Any) -> None:
        if len(devices) > 1:
            refuse(f"torch.cuda.comm.{name}()", PEERS)

    def _accelerator(self) -> dict[str, Callable[..., Any]]:
        memory = self._memory
        return {
            "_accelerator_getAccelerator": lambda: torch.device("cuda"),
            "_accelerator_isAllocatorInitialized": lambda: True,
            "_accelerator_getDeviceIndex": lambda: self.index,
            "_accelerator_setDeviceIndex": self._set_device,
            "_accelerator_exchangeDevice": self.exchange_device,
            "_accelerator_maybeExchangeDevice": self.exchange_device,
            "_accelerator_getDeviceCapability": self._capability,
            "_accelerator_getStream": lambda index=None: torch.cuda.current_stream(),
            "_accelerator_setStream": lambda stream: self._set_stream(stream.stream_id),
            "_accelerator_synchronizeDevice": lambda index=None: None,
            "_accelerator_emptyCache": self._mode.log.empty_cache,
            "_accelerator_emptyHostCache": lambda: None,
            "_host_emptyCache": lambda: None,
            "_accelerator_getDeviceStats": lambda index=None: memory.statistics(),
            "_accelerator_resetPeakStats": lambda index=None: memory.reset_peaks(),
            "_accelerator_resetAccumulatedStats": lambda index=None: memory.reset_accumulated(),
            "_accelerator_getMemoryInfo": lambda index=None: self.memory_info(),
            "_accelerator_setAllocatorSettings": self._set_allocator,
        }

    def unknown(self, name: str) -> Refusal:
        """Return the replacement of a CUDA function of `torch._C` that is in no table, which raises when it is called.

        Args:
            name: The name in `torch._C`.

        Raises:
            AttributeError: The name is not a function of CUDA.
        """
        if name.startswith(_UNKNOWN_NAMES) or name in _UNKNOWN_IN_CPU_BUILDS:
            return Refusal(f"torch._C.{name}")
        raise AttributeError(f"module 'torch._C' has no attribute {name!r}")

    def runtime_api(self) -> Any:
        """Return the replacement of the object that `torch.cuda.cudart()` returns."""

        class CudaError(int):
            success = 0

        def done(*args: Any) -> int:
            return 0

        class Cudart(SimpleNamespace):
            def __getattr__(self, name: str) -> Any:
                if name.startswith("cuda"):
                    return Refusal(f"torch.cuda.cudart().{name}")
                raise AttributeError(name)

        return Cudart(
            cudaError=CudaError,
            cudaGetErrorString=lambda code: "no error" if code == 0 else "unknown error",
            cudaMemGetInfo=lambda device=None: self.memory_info(),
            cudaProfilerStart=done,
            cudaProfilerStop=done,
            cudaHostRegister=done,
            cudaHostUnregister=done,
        )

    def memory_info(self) -> tuple[int, int]:
        """Return the free and the total bytes of the device."""
        return self._memory.free_bytes(), self._memory.total_bytes or 0

    def exchange_device(self, index: int) -> int:
        """Make a device the current one, and return the index of the previous one."""
        before = self.index
        if index >= 0:
            self._set_device(index)
        return before

    def used_bytes(self) -> int:
        """Return the bytes of the device that NVML would show as used."""
        free, total = self.memory_info()
        return total - free

    def processes(self) -> str:
        """Return the text of `torch.cuda.list_gpu_processes`."""
        used = self.used_bytes() / (1 << 20)
        return f"GPU:{self.index}\nprocess {os.getpid():>10d} uses {used:>12.3f} MB GPU memory"

    def _clear_workspaces(self) -> None:
        self._mode.log.release_workspaces()
        kernels = self._mode.workspaces
        if isinstance(kernels, Workspaces):
            kernels.forget_kept()

    def _set_device(self, index: int) -> None:
        if index >= self.devices:
            raise torch.AcceleratorError("CUDA error: invalid device ordinal")
        if index >= 0:
            self.index = self._streams.index = index

    def _set_stream(self, stream_id: int, device_index: int = 0, device_type: int = 1) -> None:
        self._streams.current = stream_id

    def _architectures(self) -> str:
        own = "sm_{}{}".format(*self._target.capability)
        return " ".join(sorted({*_ARCHITECTURES, own}, key=lambda name: int(name[3:])))

    def _compiled_version(self) -> int:
        major, minor = map(int, cuda_version(self._target.torch_version).split("."))
        return major * 1000 + minor * 10

    def _fraction(self) -> float:
        return self._target.allocator.memory_fraction or 1.0

    def _set_fraction(self, fraction: float, device: int = 0) -> None:
        if fraction != self._fraction():
            refuse(
                "torch.cuda.set_per_process_memory_fraction()",
                "give the share with PYTORCH_ALLOC_CONF=per_process_memory_fraction:SHARE, which is followed",
            )

    def _set_allocator(self, text: str) -> None:
        from memprof.allocator.settings import parse_alloc_conf

        if parse_alloc_conf(text) != self._target.allocator:
            refuse("the allocator's settings", "set PYTORCH_ALLOC_CONF before the program starts, which is followed")

    def _set_debug_mode(self, mode: int) -> None:
        self._debug_mode = mode

    def _set_benchmark_limit(self, limit: int) -> None:
        self._benchmark_limit = limit

    def _capability(self, index: int | None = None) -> dict[str, Any]:
        dtypes = {
            *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int16),
            *(torch.int32, torch.int64, torch.bool, torch.complex64, torch.complex128),
        }
        return {"supported_dtypes": dtypes}
