"""The memory that a training adds to a CUDA context outside the caching allocator.

CUDA loads a kernel when it is first launched (`CUDA_MODULE_LOADING=LAZY`, which PyTorch sets since 1.13). The first
kernel that needs more local memory per thread than the context has set aside makes the driver set aside more, for every
thread that the GPU can hold at once. Libraries make their handles at their first call. The allocator sees none of this,
and a context measured before the first step lacks all of it.

The two constants are estimates from one set of runs. In runs with PyTorch 2.6.0 and CUDA 12.4
(github.com/Stone-ResearchLife/xMem, see reports/accuracy.md), NVML's used memory above the bare context, less what the
allocator reserved, was the same for CNNs and transformers, for SGD and Adafactor, and for every batch size. It was 30
MiB on an RTX 4060, 34 on an RTX 3060 and 94 on an A100, to within 2 MiB. A part for each thread and a part for each
process agree with these figures.
"""

from __future__ import annotations

LATE_WITHIN_BYTES = 2 << 20  # the rule's largest error on the runs it was read from: NVML's granularity
_BYTES_PER_PROCESS = 18 << 20
_BYTES_PER_THREAD = 360


def late_bytes(sm_count: int, capability: tuple[int, int]) -> int:
    """Return the bytes that a training adds to the context.

    Args:
        sm_count: the number of multiprocessors of the GPU.
        capability: the GPU's compute capability, major and minor.
    """
    return _BYTES_PER_PROCESS + sm_count * threads_per_sm(capability) * _BYTES_PER_THREAD


def threads_per_sm(capability: tuple[int, int]) -> int:
    """Return the number of threads that a multiprocessor holds.

    Source: CUDA C++ programming guide, compute capabilities.

    Args:
        capability: the GPU's compute capability, major and minor.
    """
    major, minor = capability
    if (major, minor) == (7, 5):
        return 1024
    return 1536 if major == 12 or (major == 8 and minor > 0) else 2048
