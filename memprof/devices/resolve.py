"""The meaning of a `--device` name: a device of this machine or a simulated GPU, and its memory."""

from __future__ import annotations

import psutil
import torch

from memprof.allocator.settings import AllocatorSettings, parse_alloc_conf
from memprof.devices.catalog import SimulatedDevice, device_here, find_device
from memprof.devices.host import allocator_conf, device_memory_bytes
from memprof.devices.target import Target, parse_torch_version
from memprof.documents.jobs import DeviceFact
from memprof.errors import UsageError


def is_real(device: str) -> bool:
    """Return whether a resolved device belongs to this machine.

    Args:
        device: `cpu`, `cuda:N`, or the name of a simulated GPU.
    """
    return device == "cpu" or device.startswith("cuda:")


def resolve(name: str, world_size: int = 1) -> DeviceFact:
    """Return the device that a `--device` name means, with its memory from the driver or the catalog.

    Args:
        name: `auto`, `cpu`, `cuda` and `cuda:N` are devices of this machine. Any other name, or a size, is a simulated
            GPU.
        world_size: the number of ranks. They share the CPU's memory, but each has its own GPU.

    Raises:
        UsageError: this machine has no such device, or the catalog has no such GPU.
    """
    device, memory = _name_and_memory(name)
    share = world_size if device == "cpu" else 1
    free = min(memory, _free_bytes(device)) if is_real(device) else memory
    return DeviceFact(
        name=device,
        simulated=not is_real(device),
        memory_bytes=memory // share,
        capacity_bytes=free // share,
        kernels=_kernels(device),
    )


def find_target(device: str, conf: str | None = None) -> Target:
    """Return the target of a prediction for a resolved device.

    Args:
        device: `cpu`, `cuda:N`, or the name of a simulated GPU.
        conf: the caching allocator's settings; None for those of the environment.

    Raises:
        UsageError: the settings cannot be read, or the catalog has no such GPU.
    """
    if device == "cpu":
        return Target()
    text = allocator_conf() if conf is None else conf
    settings = parse_alloc_conf(text) if text else AllocatorSettings()
    return target_of(device_here(device) if is_real(device) else find_device(device), settings)


def target_of(
    device: SimulatedDevice, allocator: AllocatorSettings | None = None, torch_version: str | None = None
) -> Target:
    """Return the target of a prediction for a GPU.

    Args:
        device: the GPU.
        allocator: the settings of the caching allocator; None for PyTorch's defaults.
        torch_version: the version of PyTorch that is to run there; None for the version of this process.
    """
    return Target(
        name=device.name,
        title=device.title,
        kind="cuda",
        capability=device.compute_capability,
        sm_count=device.sm_count,
        torch_version=parse_torch_version(torch_version or torch.__version__),
        capacity_bytes=device.capacity_bytes,
        allocator=allocator or AllocatorSettings(),
        context_bytes=device.context_bytes,
        context_range_bytes=device.context_range_bytes,
        context_source=device.context_source,
        late_bytes=device.late_bytes,
        generic=device.generic,
    )


def _name_and_memory(name: str) -> tuple[str, int]:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name, device_memory_bytes(name)
    kind, _, index = name.partition(":")
    if kind != "cuda" or not (index or "0").isdigit():
        simulated = find_device(name)
        return simulated.name, simulated.capacity_bytes
    if not torch.cuda.is_available():
        raise UsageError(f"--device {name} needs a CUDA device and this PyTorch sees none; use --device cpu")
    if int(index or 0) >= torch.cuda.device_count():
        raise UsageError(f"there is no {name}: this machine has {torch.cuda.device_count()} (`memprof devices`)")
    name = f"cuda:{index or 0}"
    return name, device_memory_bytes(name)


def _kernels(device: str) -> str:
    """Return a text that identifies which kernels run and what they take. The size of the memory does not count."""
    target = find_target(device)
    if target.kind == "cpu":
        return target.kind
    return f"cuda {target.capability} {target.sm_count} {target.torch_version}"


def _free_bytes(device: str) -> int:
    """Return the bytes that can be allocated now. Asking the driver creates the CUDA context, so it is included."""
    if device == "cpu":
        return int(psutil.virtual_memory().available)
    return int(torch.cuda.mem_get_info(device)[0])
