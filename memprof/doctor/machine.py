"""Checks what this machine can measure and what it cannot. Each check tries the thing itself if that is possible."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec

from memprof.devices.host import allocator_conf, cpu_memory_bytes, nvml, usable_cores
from memprof.doctor import Check
from memprof.doctor.predictions import prediction_checks
from memprof.units import format_size

OLDEST_TORCH, NEWEST_TORCH = (2, 8), (2, 15)
_PROBE_BYTES = 1_234_560


def examine() -> list[Check]:
    """Run all checks and return their findings. Checks that need torch are left out if it cannot be imported."""
    # Without these the profiler of the allocator check prints to stderr. torch reads them when it is imported.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    version = check_torch()
    checks = [version, check_fork()]
    if "torch" in sys.modules:
        checks += [*(check() for check in _WITH_TORCH), *prediction_checks()]
    return [
        *checks,
        check_nvml(),
        check_high_water(),
        check_memory(),
        check_allocator(),
        check_transformers(),
    ]


def check_torch() -> Check:
    """Check that PyTorch can be imported, and that memprof was tested with its version."""
    try:
        import torch
    except Exception as error:  # a broken installation raises OSError, ImportError or worse
        return Check("torch", "fail", f"PyTorch cannot be imported ({error}); pip install 'torch>=2.8'")
    tested = f"{_dotted(OLDEST_TORCH)} to {_dotted(NEWEST_TORCH)}"
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    release = (int(found[1]), int(found[2])) if found else (0, 0)
    if release < OLDEST_TORCH:
        return Check("torch", "fail", f"{torch.__version__} is too old; pip install 'torch>=2.8'")
    if release > NEWEST_TORCH:
        return Check("torch", "warn", f"{torch.__version__} is newer than what memprof was tested with ({tested})")
    return Check("torch", "pass", f"{torch.__version__}, tested with {tested}")


def check_fork() -> Check:
    """Check that processes can be forked, which every trial needs."""
    if hasattr(os, "fork"):
        return Check("processes", "pass", "fork() gives every trial a fresh process")
    return Check("processes", "fail", "there is no fork() here; measure on Linux, macOS or WSL")


def check_threads() -> Check:
    """Check that torch does not use more threads than this process has cores."""
    import torch

    threads, cores = torch.get_num_threads(), usable_cores()
    if threads > cores:
        found = f"torch uses {threads} threads on {cores} cores, step times suffer; set OMP_NUM_THREADS={cores}"
        return Check("threads", "warn", found)
    return Check("threads", "pass", f"torch uses {threads} of {cores} cores")


def check_cpu_allocator() -> Check:
    """Check that an allocation on the CPU is seen with its exact size."""
    try:
        seen = _allocations_of_a_probe()
    except Exception as error:  # the private interface of the profiler may have changed
        return Check("CPU allocator", "fail", f"its events cannot be read: {type(error).__name__}: {error}")
    if _PROBE_BYTES not in seen:
        return Check("CPU allocator", "fail", f"an allocation of {_PROBE_BYTES} bytes was seen as {seen or 'nothing'}")
    return Check("CPU allocator", "pass", "every allocation is seen, byte-exact")


def check_cuda() -> Check:
    """Check that GPU memory can be measured."""
    import torch

    if torch.version.cuda is None:
        return Check("CUDA", "warn", f"torch {torch.__version__} is built without CUDA: GPUs cannot be measured")
    if not torch.cuda.is_available():
        return Check("CUDA", "warn", "torch sees no GPU: allocated and reserved GPU memory cannot be measured")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Check("CUDA", "pass", f"{torch.version.cuda} with {', '.join(names)}")


def check_ranks() -> Check:
    """Check that a training over several ranks can be measured."""
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_gloo_available()):
        return Check("ranks", "warn", "this PyTorch has no gloo: --strategy ddp and fsdp cannot be measured on the CPU")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() and dist.is_nccl_available() else 0
    more = f", NCCL for --world-size up to {gpus} on GPUs" if gpus > 1 else "; on GPUs it takes two of them, and NCCL"
    return Check("ranks", "pass", f"gloo for --strategy ddp and fsdp on the CPU{more}")


def check_nvml() -> Check:
    """Check that NVML answers. It gives the memory of a process on the GPU and the version of the driver."""
    with nvml() as library:
        if library is None:
            found = "it does not answer, so the process's memory on a GPU and the driver's version are missing"
            return Check("NVML", "warn", found)
        driver, count = library.nvmlSystemGetDriverVersion(), library.nvmlDeviceGetCount()
        return Check("NVML", "pass", f"driver {driver}, {count} GPU(s)")


def check_high_water() -> Check:
    """Check that the kernel's high-water mark of resident memory can be reset after the imports."""
    from memprof.measurement.process_memory import reset_peak_rss

    if reset_peak_rss():
        return Check("process memory", "pass", "the high-water mark can be reset (clear_refs)")
    return Check("process memory", "warn", "the high-water mark cannot be reset: it counts the start of the process")


def check_memory() -> Check:
    """Report how much memory this process may use."""
    import psutil

    limit, physical = cpu_memory_bytes(), int(psutil.virtual_memory().total)
    if limit < physical:
        found = f"{format_size(limit)} by the control group's limit, of {format_size(physical)}"
        return Check("memory", "pass", found)
    return Check("memory", "pass", format_size(physical))


def check_allocator() -> Check:
    """Check that the settings of the caching allocator allow a measurement."""
    conf = allocator_conf()
    if conf is None:
        return Check("allocator", "pass", "PyTorch's default settings")
    if "cudaMallocAsync" in conf:
        found = f"{conf}: this backend keeps no history, so GPU memory cannot be measured"
        return Check("allocator", "warn", found)
    return Check("allocator", "pass", conf)


def check_transformers() -> Check:
    """Check that `hf:` models can be built."""
    if find_spec("transformers") is not None:
        return Check("transformers", "pass", "hf: models can be built")
    return Check("transformers", "warn", "hf: models need it; pip install 'sm3-memprof[hf]'")


def _allocations_of_a_probe() -> list[int]:
    import torch

    from memprof.measurement.record.profiler import ProfilerRecorder
    from memprof.trace.events import Allocation

    recorder = ProfilerRecorder("cpu")
    recorder.start()
    probe = torch.empty(_PROBE_BYTES, dtype=torch.uint8)
    entries = recorder.stop()
    del probe
    return [entry.size for entry in entries if isinstance(entry, Allocation)]


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


_WITH_TORCH: tuple[Callable[[], Check], ...] = (check_threads, check_cpu_allocator, check_cuda, check_ranks)
