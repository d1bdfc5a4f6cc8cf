"""This machine: its devices and their memory, and the environment that is recorded with every figure."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import psutil

from memprof.errors import MemprofError

if TYPE_CHECKING:
    from memprof.documents.comparison import Environment


CGROUP_MOUNT = Path("/sys/fs/cgroup")
# If no limit is set, cgroup v1 answers with the largest page-aligned int64.
_NO_LIMIT = 2**62


def memprof_version() -> str:
    """Return the installed version, or `unknown` for a checkout that is not installed."""
    try:
        return metadata.version("sm3-memprof")
    except metadata.PackageNotFoundError:
        return "unknown"


def describe_environment(command: str | None, device: str) -> Environment:
    """Return the environment in which figures are made. Call it in the process that makes them.

    The CUDA driver is asked only about a CUDA device, so measuring on the CPU never starts it. A figure that the driver
    or NVML does not give is None.

    Args:
        command: the command line to record.
        device: `cpu`, `cuda` or `cuda:N`.
    """
    import torch

    from memprof.documents.comparison import Environment

    gpu = _describe_gpu(device) if device.startswith("cuda") else {}
    return Environment(
        memprof=memprof_version(),
        python=platform.python_version(),
        platform=platform.platform(),
        processor=processor_name(),
        instruction_set=torch.backends.cpu.get_cpu_capability(),
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        memory_bytes=cpu_memory_bytes(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        allocator_conf=allocator_conf(),
        command=command,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **gpu,
    )


def device_memory_bytes(device: str) -> int:
    """Return the memory of a device in bytes.

    For the CPU it is the physical memory, or the limit of the control group if that is lower. For CUDA it is what the
    driver reports as the device's total, which is less than the size in its name.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.

    Raises:
        MemprofError: the driver does not answer.
    """
    if not device.startswith("cuda"):
        return cpu_memory_bytes()
    import torch

    try:
        return int(torch.cuda.mem_get_info(device)[1])
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise MemprofError(f"the CUDA driver does not say how much memory {device} has: {reason}") from error


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name, or its architecture if the system does not give the name.

    Args:
        cpuinfo: the file in which Linux describes the processor.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def usable_cores() -> int:
    """Return the number of logical cores on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def allocator_conf() -> str | None:
    """Return the caching allocator's settings from the environment.

    PyTorch 2.9 renamed the variable, and the old name still counts.
    """
    return os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF")


def cpu_memory_bytes() -> int:
    """Return the physical memory in bytes, or the control group's limit if that is lower."""
    limits = cgroup_limits(Path("/proc/self/cgroup"), CGROUP_MOUNT)
    return min([int(psutil.virtual_memory().total), *limits])


def cgroup_limits(membership: Path, mount: Path) -> list[int]:
    """Return the memory limits in bytes that apply to this process: those of its control group and of all above it.

    Args:
        membership: `/proc/self/cgroup`, whose lines are `ID:CONTROLLERS:PATH` (cgroups(7)).
        mount: the folder in which control groups are mounted. In a container PATH may lie outside of it.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found: list[int] = []
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers == "":
            found += _limits_above(mount, path, "memory.max")
        elif "memory" in controllers.split(","):
            found += _limits_above(mount / "memory", path, "memory.limit_in_bytes")
    return found


def _limits_above(root: Path, path: str, name: str) -> list[int]:
    group = PurePosixPath(path.lstrip("/"))
    values = (_read_limit(root / level / name) for level in (group, *group.parents))
    return [value for value in values if value is not None]


def _read_limit(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) < _NO_LIMIT else None


@contextmanager
def nvml() -> Iterator[Any]:
    """Yield the `pynvml` module with NVML started, or None if the module, the library or the driver is missing."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # a broken driver raises any of a dozen NVMLError classes; the import may fail as well
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def driver_version() -> str | None:
    """Return the version of the NVIDIA driver, or None without NVML."""
    with nvml() as library:
        if library is None:
            return None
        try:
            version = library.nvmlSystemGetDriverVersion()
        except library.NVMLError:
            return None
    return version.decode() if isinstance(version, bytes) else str(version)


def _describe_gpu(device: str) -> dict[str, Any]:
    import torch

    return {
        "cudnn": dotted_cudnn(torch.backends.cudnn.version()),
        "driver": driver_version(),
        "gpu": torch.cuda.get_device_name(device),
        "gpu_memory_bytes": device_memory_bytes(device),
    }


def dotted_cudnn(version: int | None) -> str | None:
    """Return a version of cuDNN in the usual form: `9.10.2` for 91002.

    Args:
        version: The number that PyTorch reports; None without cuDNN. Before cuDNN 9 the major version was counted in
            thousands.
    """
    if version is None:
        return None
    major = 10_000 if version >= 90_000 else 1_000
    return f"{version // major}.{version % major // 100}.{version % 100}"


@dataclass(frozen=True)
class Device:
    """A device of this machine on which memprof can train.

    Attributes:
        device: the name that `--device` takes.
        name: the name of the processor or the GPU.
        total_bytes: its memory; for the CPU the control group's limit if that is lower than the machine's memory.
        free_bytes: the memory that is free now; None if the driver does not say.
    """

    device: str
    name: str
    total_bytes: int
    free_bytes: int | None


def list_devices() -> list[Device]:
    """Return the CPU and the CUDA devices that PyTorch sees, which depend on CUDA_VISIBLE_DEVICES."""
    import torch

    total = cpu_memory_bytes()
    cpu = Device("cpu", processor_name(), total, min(int(psutil.virtual_memory().available), total))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [cpu, *(_cuda_device(index) for index in range(count))]


def _cuda_device(index: int) -> Device:
    import torch

    properties = torch.cuda.get_device_properties(index)
    try:
        free, total = torch.cuda.mem_get_info(index)
    except RuntimeError:  # a GPU in exclusive mode that another process holds
        free, total = None, properties.total_memory
    return Device(f"cuda:{index}", properties.name, int(total), free)
