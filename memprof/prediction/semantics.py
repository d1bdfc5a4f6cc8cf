"""Chooses the semantics of a device: what the CPU or CUDA does with a training step."""

from __future__ import annotations

from memprof.devices.target import Target
from memprof.prediction.cpu.semantics import CpuSemantics
from memprof.prediction.cuda.semantics import CudaSemantics


def semantics_of(target: Target, *, limited: bool = False, devices: int = 1, index: int = 0) -> CpuSemantics:
    """Return the semantics of a device. Those of CUDA are those of the CPU with the differences applied.

    Args:
        target: The device.
        limited: Whether an allocation that does not fit a GPU raises `torch.OutOfMemoryError` in the training.
        devices: The number of GPUs that the training sees.
        index: The index of the GPU that it uses.
    """
    if target.kind == "cuda":
        return CudaSemantics(target, limited=limited, devices=devices, index=index)
    return CpuSemantics()
