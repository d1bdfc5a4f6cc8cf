"""Chooses the semantics of a device: what the CPU or CUDA does with a training step."""

from __future__ import annotations

from memprof.devices.target import Target
from memprof.prediction.cpu.semantics import CpuSemantics
from memprof.prediction.cuda.semantics import CudaSemantics


def semantics_of(target: Target, *, limited: bool = False) -> CpuSemantics:
    """Return the semantics of a device. Those of CUDA are those of the CPU with the differences applied.

    Args:
        target: The device.
        limited: Whether an allocation that does not fit a GPU raises `torch.OutOfMemoryError` in the training.
    """
    return CudaSemantics(target, limited=limited) if target.kind == "cuda" else CpuSemantics()
