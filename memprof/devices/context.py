"""What a training adds to a CUDA context outside the caching allocator: kernels and handles that are loaded late.

CUDA loads a kernel when it is first launched (`CUDA_MODULE_LOADING=LAZY`, which PyTorch sets since 1.13), and the first
kernel that needs more local memory per thread than the context has set aside makes the driver set aside more, for
every thread that the GPU can hold at once. Libraries make their handles at their first call. None of it is seen by
the allocator, and all of it is missing from a context measured before the first step.

The two constants are the best that is known, and no more: NVML's used memory above the bare context, less what the
allocator reserved, was the same for CNNs and transformers, for SGD and Adafactor, and for every batch size, in runs
with PyTorch 2.6.0 and CUDA 12.4 (github.com/Stone-ResearchLife/xMem, see reports/accuracy.md): 30 MiB on an RTX 4060,
34 on an RTX 3060, 94 on an A100, to within 2 MiB. They agree with a part for each thread and a part for each process.
"""

from __future__ import annotations

LATE_WITHIN_BYTES = 2 << 20  # how far the rule is off at most where it was read: NVML's granularity
_BYTES_PER_PROCESS = 18 << 20
_BYTES_PER_THREAD = 360


def late_bytes(sm_count: int, capability: tuple[int, int]) -> int:
    """Return what a training adds to the context.

    Args:
        sm_count: multiprocessors of the GPU.
        capability: its compute capability.
    """
    return _BYTES_PER_PROCESS + sm_count * threads_per_sm(capability) * _BYTES_PER_THREAD


def threads_per_sm(capability: tuple[int, int]) -> int:
    """Return how many threads a multiprocessor holds (CUDA C++ programming guide, compute capabilities)."""
    major, minor = capability
    if (major, minor) == (7, 5):
        return 1024
    return 1536 if major == 12 or (major == 8 and minor > 0) else 2048
