"""What a target's device does with a training step: the one place that chooses between the CPU and CUDA."""

from __future__ import annotations

from memprof.devices.target import Target
from memprof.prediction.cpu.semantics import CpuSemantics
from memprof.prediction.cuda.semantics import CudaSemantics


def semantics_of(target: Target, *, limited: bool = False, devices: int = 1, index: int = 0) -> CpuSemantics:
    """Return the semantics of a target's device; CUDA's are a CPU's with what CUDA does differently put in.

    Args:
        target: the device.
        limited: what does not fit a GPU raises `torch.OutOfMemoryError` in the training.
        devices: how many GPUs the training sees.
        index: of the one that it uses.
    """
    if target.kind == "cuda":
        return CudaSemantics(target, limited=limited, devices=devices, index=index)
    return CpuSemantics()
