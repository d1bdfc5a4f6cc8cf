"""What only the device itself knows: memory reserved from it, and memory of the whole process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

import torch

from memprof.devices.host import allocator_conf, nvml
from memprof.errors import UsageError
from memprof.measurement.process_memory import give_back_free_memory, peak_rss_bytes, reset_peak_rss, rss_bytes

if TYPE_CHECKING:
    from memprof.measurement.record.check_history import HistorySummary


class Probe(Protocol):
    """Reads one device's figures through a trial.

    Attributes:
        reserved: by phase, the most that the caching allocator had taken from the device; empty on the CPU.
        notes: what the reader of the figures must know.
    """

    reserved: dict[str, int]
    notes: list[str]

    def start(self) -> None:
        """Begin, before the model is built."""

    def end_phase(self, phase: str) -> None:
        """A phase of a training step has ended."""

    def synchronize(self) -> None:
        """Wait until the device has done what it was asked to."""

    def high_water_bytes(self) -> int:
        """Return the most memory used so far, for progress."""

    def process_bytes(self) -> int | None:
        """Return the memory of the process, None where it cannot be had."""

    def workspace_bytes(self) -> int | None:
        """Return the size of a workspace that a library keeps for good, None where there is none."""

    def allocations(self) -> list[int]:
        """Return how many blocks were allocated since the last call, and their bytes; nothing if nobody counts them."""

    def aside(self) -> AbstractContextManager[None]:
        """Leave out of the figures what goes on in the `with` block, which is no part of the training."""

    def summary(self) -> HistorySummary | None:
        """Return what sums up the recording of the device's allocator, None where it records nothing."""


class CpuProbe:
    """The CPU: the kernel's high-water mark of resident memory."""

    def __init__(self) -> None:
        self.reserved: dict[str, int] = {}
        self.notes: list[str] = []
        self._highest = 0  # before the last reset
        self._kept = 0  # of what was done aside

    def start(self) -> None:
        """Begin with the resident size of now."""
        if not reset_peak_rss():
            self.notes.append("The process figure includes the start of the worker: this kernel cannot reset it.")

    def end_phase(self, phase: str) -> None:
        """Do nothing: the CPU's allocator reserves nothing."""

    def synchronize(self) -> None:
        """Do nothing: the CPU is done when the call returns."""

    def high_water_bytes(self) -> int:
        """Return the high-water resident size."""
        return max(self._highest, peak_rss_bytes() - self._kept)

    def process_bytes(self) -> int | None:
        """Return the high-water resident size."""
        return self.high_water_bytes()

    def workspace_bytes(self) -> int | None:
        """Return None: what libraries keep on the CPU is not the allocator's."""
        return None

    def allocations(self) -> list[int]:
        """Return nothing: the CPU's allocator does not count."""
        return []

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the block out of the high-water mark, where the kernel can reset it."""
        self._highest, before = self.high_water_bytes(), rss_bytes()
        yield
        give_back_free_memory()
        self._kept += max(0, rss_bytes() - before)
        reset_peak_rss()

    def summary(self) -> None:
        """Return None: the CPU's allocator records nothing."""


class CudaProbe:
    """A CUDA device: the caching allocator's reserved bytes, and NVML's used memory of the process.

    Reserved bytes are bookkeeping on the host: no synchronisation is needed to read them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.reserved: dict[str, int] = {}
        self.notes: list[str] = []
        self._counted = [0, 0]

    def start(self) -> None:
        """Create the context, so that its memory is there before the model's."""
        if torch.cuda.get_allocator_backend() != "native":
            raise UsageError(
                "the allocator cudaMallocAsync keeps no history to measure by; take it out of PYTORCH_ALLOC_CONF"
            )
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(self._device)

    def end_phase(self, phase: str) -> None:
        """Keep the phase's peak and begin the next."""
        peak = torch.cuda.max_memory_reserved(self._device)
        self.reserved[phase] = max(self.reserved.get(phase, 0), peak)
        torch.cuda.reset_peak_memory_stats(self._device)

    def synchronize(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize(self._device)

    def high_water_bytes(self) -> int:
        """Return what the allocator holds of the device."""
        return torch.cuda.memory_reserved(self._device)

    def process_bytes(self) -> int | None:
        """Return NVML's used memory of this process; reserved memory only grows, so now is as good as the peak."""
        with nvml() as library:
            if library is None:
                self.notes.append("NVML does not answer, so there is no process figure; `memprof doctor` says more.")
                return None
            try:
                uuid = str(torch.cuda.get_device_properties(self._device).uuid)
                handle = library.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
                processes = library.nvmlDeviceGetComputeRunningProcesses(handle)
            except library.NVMLError as error:
                self.notes.append(f"NVML gives no process figure: {error}.")
                return None
        used = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
        if not used or used[0] is None:
            self.notes.append("NVML does not list this process (a container hides its number): no process figure.")
            return None
        return int(used[0])

    def workspace_bytes(self) -> int | None:
        """Return the size of cuBLAS's workspace, which each thread that multiplies matrices has."""
        from memprof.devices.target import Target

        return Target(capability=torch.cuda.get_device_capability(self._device)).cublas_workspace_bytes

    def allocations(self) -> list[int]:
        """Return the difference of the allocator's own counters."""
        stats = torch.cuda.memory_stats(self._device)
        counters = [stats["allocation.all.allocated"], stats["allocated_bytes.all.allocated"]]
        before, self._counted = self._counted, counters
        return [now - then for now, then in zip(counters, before, strict=True)]

    def aside(self) -> AbstractContextManager[None]:
        """Do nothing: what is done on the host is none of the device's."""
        return nullcontext()

    def summary(self) -> HistorySummary | None:
        """Return what sums up the recording, for the allocator's settings and the device's memory."""
        from memprof.allocator.settings import AllocatorSettings, parse_alloc_conf
        from memprof.measurement.record.check_history import HistorySummary

        conf = allocator_conf()
        settings = parse_alloc_conf(conf) if conf else AllocatorSettings()
        total = torch.cuda.get_device_properties(self._device).total_memory
        return HistorySummary(settings, total)


def make_probe(device: torch.device) -> Probe:
    """Return the probe for a device."""
    return CudaProbe(device) if device.type == "cuda" else CpuProbe()
