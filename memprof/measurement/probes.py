"""Reads the figures that only the device knows: the memory reserved from it, and the memory of the whole process."""

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
    """Reads one device's figures during a trial.

    Attributes:
        reserved: For each phase, the most bytes that the caching allocator had taken from the device; empty on the CPU.
        notes: Sentences that a reader of the figures must know.
    """

    reserved: dict[str, int]
    notes: list[str]

    def start(self) -> None:
        """Begin, before the model is built."""

    def end_phase(self, phase: str) -> None:
        """Note that a phase of a training step has ended.

        Args:
            phase: The name of the phase.
        """

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""

    def high_water_bytes(self) -> int:
        """Return the highest memory use so far in bytes, to show progress."""

    def process_bytes(self) -> int | None:
        """Return the memory of the process in bytes; None if it is not available."""

    def workspace_bytes(self) -> int | None:
        """Return the size in bytes of a workspace that a library keeps until the process ends; None without one."""

    def allocations(self) -> list[int]:
        """Return how many blocks were allocated since the last call, and their bytes; nothing if nobody counts them."""

    def aside(self) -> AbstractContextManager[None]:
        """Return a context whose memory does not count, because its work is no part of the training."""

    def summary(self) -> HistorySummary | None:
        """Return the object that sums up the record of the device's allocator; None if the allocator keeps none."""


class CpuProbe:
    """Reads the CPU's figure: the high-water mark of resident memory, which the operating system keeps."""

    def __init__(self) -> None:
        self.reserved: dict[str, int] = {}
        self.notes: list[str] = []
        self._highest = 0  # before the last reset
        self._kept = 0  # of what was done aside

    def start(self) -> None:
        """Begin with the present resident size."""
        if not reset_peak_rss():
            self.notes.append("The process figure includes the start of the worker: this kernel cannot reset it.")

    def end_phase(self, phase: str) -> None:
        """Do nothing, because the CPU's allocator reserves nothing."""

    def synchronize(self) -> None:
        """Do nothing: the CPU is done when the call returns."""

    def high_water_bytes(self) -> int:
        """Return the high-water resident size."""
        return max(self._highest, peak_rss_bytes() - self._kept)

    def process_bytes(self) -> int | None:
        """Return the high-water resident size."""
        return self.high_water_bytes()

    def workspace_bytes(self) -> int | None:
        """Return None, because libraries on the CPU keep their workspaces outside of PyTorch's allocator."""
        return None

    def allocations(self) -> list[int]:
        """Return nothing: the CPU's allocator does not count."""
        return []

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the `with` block out of the high-water mark, if the operating system can reset it."""
        self._highest, before = self.high_water_bytes(), rss_bytes()
        yield
        give_back_free_memory()
        self._kept += max(0, rss_bytes() - before)
        reset_peak_rss()

    def summary(self) -> None:
        """Return None, because the CPU's allocator records nothing."""


class CudaProbe:
    """Reads a CUDA device's figures: the bytes that the caching allocator reserved, and NVML's figure of the process.

    Reserved bytes are bookkeeping on the host, so reading them needs no synchronisation.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.reserved: dict[str, int] = {}
        self.notes: list[str] = []
        self._counted = [0, 0]

    def start(self) -> None:
        """Create the CUDA context, so that its memory is allocated before the model's.

        Raises:
            UsageError: The allocator is `cudaMallocAsync`, which keeps no history.
        """
        if torch.cuda.get_allocator_backend() != "native":
            raise UsageError(
                "the allocator cudaMallocAsync keeps no history to measure by; take it out of PYTORCH_ALLOC_CONF"
            )
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(self._device)

    def end_phase(self, phase: str) -> None:
        """Note the peak of the phase, and reset the peak for the next one.

        Args:
            phase: The name of the phase.
        """
        peak = torch.cuda.max_memory_reserved(self._device)
        self.reserved[phase] = max(self.reserved.get(phase, 0), peak)
        torch.cuda.reset_peak_memory_stats(self._device)

    def synchronize(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize(self._device)

    def high_water_bytes(self) -> int:
        """Return the bytes that the allocator has reserved from the device."""
        return torch.cuda.memory_reserved(self._device)

    def process_bytes(self) -> int | None:
        """Return the bytes that NVML says this process uses; None if NVML does not tell.

        Reserved memory only grows, so the present figure is as good as the peak.
        """
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
        """Return the size of cuBLAS's workspace in bytes. Each thread that multiplies matrices has one."""
        from memprof.devices.target import Target

        return Target(capability=torch.cuda.get_device_capability(self._device)).cublas_workspace_bytes

    def allocations(self) -> list[int]:
        """Return the difference of the allocator's own counters."""
        stats = torch.cuda.memory_stats(self._device)
        counters = [stats["allocation.all.allocated"], stats["allocated_bytes.all.allocated"]]
        before, self._counted = self._counted, counters
        return [now - then for now, then in zip(counters, before, strict=True)]

    def aside(self) -> AbstractContextManager[None]:
        """Do nothing, because work on the host does not change the device's figures."""
        return nullcontext()

    def summary(self) -> HistorySummary | None:
        """Return the object that sums up the record, with the allocator's settings and the device's memory."""
        from memprof.allocator.settings import AllocatorSettings, parse_alloc_conf
        from memprof.measurement.record.check_history import HistorySummary

        conf = allocator_conf()
        settings = parse_alloc_conf(conf) if conf else AllocatorSettings()
        total = torch.cuda.get_device_properties(self._device).total_memory
        return HistorySummary(settings, total)


def make_probe(device: torch.device) -> Probe:
    """Return the probe for a device.

    Args:
        device: A CPU or a CUDA device.
    """
    return CudaProbe(device) if device.type == "cuda" else CpuProbe()
