"""Lets programs launch Triton kernels on a simulated GPU, where the kernels do not run.

A kernel works on tensors that Python code has made for it, and takes no memory from PyTorch itself. The values of its
arguments are unknown afterwards, as it may have written to them. An autotuner that tries several configurations clears
the GPU's cache with a buffer, which is allocated.

Private API of Triton, checked on 3.9: `triton.runtime.jit.JITFunction.run`,
`triton.runtime.autotuner.Autotuner._bench`, `triton.runtime.driver.driver`, and for the buffer's size
`get_empty_cache_for_benchmark` of its driver for CUDA.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest.mock import patch

import torch

from memprof.prediction.cuda.binding import Binding
from memprof.prediction.cuda.refusals import refuse
from memprof.prediction.fake.known_values import forget
from memprof.prediction.fake.tensors import tensors_in
from memprof.scripts.imports import after_import

_CLEARED = 256 << 20  # the bytes of the buffer that the autotuner clears before every run


@contextmanager
def triton_without_kernels(binding: Binding) -> Iterator[None]:
    """Make launches of Triton kernels run nothing within the `with` block.

    Args:
        binding: Describes the GPU that Triton finds.
    """
    with ExitStack() as stack:

        def change_kernels(module: Any) -> None:
            stack.enter_context(patch.object(module.JITFunction, "run", _launch))

        def change_autotuner(module: Any) -> None:
            stack.enter_context(patch.object(module.Autotuner, "_bench", _bench))

        def change_driver(module: Any) -> None:
            stack.enter_context(patch.object(module.driver, "_active", _LaunchOnlyDriver(binding)))

        changes = {
            "triton.runtime.jit": change_kernels,
            "triton.runtime.autotuner": change_autotuner,
            "triton.runtime.driver": change_driver,
        }
        with after_import(changes):
            yield


def _launch(self: Any, *args: Any, grid: Any = None, warmup: bool = False, **kwargs: Any) -> None:
    forget(None, tensors_in((*args, *kwargs.values())))


def _bench(self: Any, *args: Any, config: Any, **kwargs: Any) -> list[float]:
    torch.empty(_CLEARED // 4, dtype=torch.int32, device="cuda")
    return [1.0, 1.0, 1.0]


class _LaunchOnlyDriver:
    """Replaces Triton's driver, and describes the simulated GPU."""

    def __init__(self, binding: Binding) -> None:
        self._binding = binding
        self.utils = SimpleNamespace(get_device_properties=self._properties)

    def get_current_target(self) -> Any:
        """Return the backend and the architecture that kernels are compiled for."""
        from triton.backends.compiler import GPUTarget

        major, minor = self.get_device_capability()
        return GPUTarget("cuda", major * 10 + minor, 32)

    def get_device_capability(self, device: int | None = None) -> tuple[int, int]:
        """Return the compute capability."""
        return self._binding.properties.major, self._binding.properties.minor

    def get_current_device(self) -> int:
        """Return the number of the GPU that is selected."""
        return self._binding.index

    def get_current_stream(self, device: int | None = None) -> int:
        """Return the handle of the default stream."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Return the GPU that is selected."""
        return torch.device("cuda", self._binding.index)

    def get_device_interface(self) -> Any:
        """Return the module of PyTorch for the GPU."""
        return torch.cuda

    def is_active(self) -> bool:
        """Return True, because a GPU is available."""
        return True

    def _properties(self, device: int = 0) -> dict[str, int]:
        properties = self._binding.properties
        return {
            "max_shared_mem": getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block),
            "max_num_regs": properties.regs_per_multiprocessor,
            "multiprocessor_count": properties.multi_processor_count or 0,
            "warpSize": properties.warp_size,
        }

    def __getattr__(self, name: str) -> Any:
        def unknown(*args: Any, **kwargs: Any) -> NoReturn:
            refuse(f"triton.runtime.driver.active.{name}()", "there is no CUDA driver behind a simulated GPU")

        return unknown
