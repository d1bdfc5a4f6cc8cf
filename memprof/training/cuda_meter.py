"""The meter for a CUDA device: the caching allocator's own peaks, its event history, and NVML's view of the process."""

from __future__ import annotations

import os

import torch

from memprof.machine import nvml
from memprof.results import Breakdown, Peak, PhasePeak
from memprof.tracing.attribution import build_trace
from memprof.tracing.cuda_allocator import CudaRecorder
from memprof.tracing.events import Mark, PhaseMark
from memprof.training.meter import Reading, attributed_breakdown, repeatability_note, tensor_peaks


class CudaMeter:
    """Reads the allocator's peaks at each phase boundary; only the attributed step records events.

    Allocated and reserved bytes are bookkeeping on the host: no synchronisation is needed to read them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._recorder = CudaRecorder(device)
        self._current: tuple[int, str] | None = None
        self._spans: list[tuple[int, str, PhasePeak]] = []
        self._process_bytes: int | None = None
        self._attributed = False
        self._notes: list[str] = []

    def start(self) -> None:
        """Begin, before the model is built."""
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(self._device)

    def begin_phase(self, step: int, phase: str) -> None:
        """A phase of a training step begins, and the one before it ends."""
        self._end_span()
        self._current = (step, phase)
        if self._attributed:
            self._recorder.mark(PhaseMark(step, phase))

    def _end_span(self) -> None:
        if self._current is not None and not self._attributed:
            allocated = torch.cuda.max_memory_allocated(self._device)
            reserved = torch.cuda.max_memory_reserved(self._device)
            self._spans.append((*self._current, PhasePeak(allocated_bytes=allocated, reserved_bytes=reserved)))
        torch.cuda.reset_peak_memory_stats(self._device)

    def begin_attribution(self) -> None:
        """End the measured steps: what NVML says now is the process's figure, since reserved memory only grows."""
        self._end_span()
        self._process_bytes = self._nvml_bytes()
        self._attributed = True
        self._current = None
        self._recorder.start()

    def mark(self, mark: Mark) -> None:
        """Put a mark between the last event and the next."""
        self._recorder.mark(mark)

    def synchronize(self) -> None:
        """Wait until the device has done what it was asked to."""
        torch.cuda.synchronize(self._device)

    def high_water_bytes(self) -> int:
        """Return what the allocator holds of the device."""
        return torch.cuda.memory_reserved(self._device)

    def finish(self) -> Reading:
        """End measuring; tensor figures and the breakdown come from the attributed step's events."""
        if not self._attributed:
            self._end_span()
        tensors, breakdown = self._explain() if self._attributed else ({}, None)
        top = max(self._spans, key=lambda span: span[2].allocated_bytes)
        steps = sorted({step for step, _, _ in self._spans})
        step_peaks = [max(peak.allocated_bytes for s, _, peak in self._spans if s == step) for step in steps]
        peak = Peak(
            tensor_bytes=max(tensors.values()) if tensors else None,
            allocated_bytes=top[2].allocated_bytes,
            reserved_bytes=max(peak.reserved_bytes or 0 for _, _, peak in self._spans),
            process_bytes=self._process_bytes,
            phase=top[1],
            step=top[0],
        )
        phases = self._phases(tensors)
        return Reading(
            peak=peak,
            phases=phases,
            step_peaks=step_peaks,
            breakdown=breakdown,
            levels={name: [phase.reserved_bytes or phase.allocated_bytes] for name, phase in phases.items()},
            notes=self._notes + repeatability_note(step_peaks),
        )

    def _phases(self, tensors: dict[str, int]) -> dict[str, PhasePeak]:
        merged: dict[str, PhasePeak] = {}
        for _, phase, peak in self._spans:
            known = merged.get(phase, peak)
            merged[phase] = PhasePeak(
                tensor_bytes=tensors.get(phase),
                allocated_bytes=max(known.allocated_bytes, peak.allocated_bytes),
                reserved_bytes=max(known.reserved_bytes or 0, peak.reserved_bytes or 0),
            )
        return merged

    def _explain(self) -> tuple[dict[str, int], Breakdown]:
        trace = build_trace(self._recorder.stop())
        step = trace.spans[-1].step
        return tensor_peaks(trace, step), attributed_breakdown(trace)

    def _nvml_bytes(self) -> int | None:
        """Return NVML's used memory of this process; in a container NVML may not know the process by its number."""
        with nvml() as library:
            if library is None:
                self._notes.append("NVML does not answer, so there is no process figure; `memprof doctor` says more.")
                return None
            try:
                uuid = str(torch.cuda.get_device_properties(self._device).uuid)
                handle = library.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
                processes = library.nvmlDeviceGetComputeRunningProcesses(handle)
            except library.NVMLError as error:
                self._notes.append(f"NVML gives no process figure: {error}.")
                return None
        used = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
        if not used or used[0] is None:
            self._notes.append("NVML does not list this process (a container hides its number): no process figure.")
            return None
        return int(used[0])
