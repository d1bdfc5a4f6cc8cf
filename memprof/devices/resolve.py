"""What the devices of a fit are: their memory, and which of them run the same kernels."""

from __future__ import annotations

from memprof.allocator.settings import AllocatorSettings, parse_alloc_conf
from memprof.devices.catalog import device_here, find_device
from memprof.devices.host import allocator_conf
from memprof.devices.target import Target
from memprof.documents.jobs import DeviceFact, DeviceFindings, DeviceInquiry
from memprof.prediction.run import target_of
from memprof.workers.worker import is_real, memory_of_rank, resolve_device


def find_devices(inquiry: DeviceInquiry) -> DeviceFindings:
    """Return the facts of each device, in order.

    Raises:
        UsageError: this machine has no such device, or the catalog no such GPU.
    """
    return DeviceFindings(devices=[_fact(name, inquiry.world_size) for name in inquiry.devices])


def find_target(device: str, conf: str | None = None) -> Target:
    """Return what a prediction for a resolved device is for.

    Args:
        device: `cpu`, `cuda:N`, or a simulated GPU's name.
        conf: the caching allocator's settings; those of the environment if not given.
    """
    if device == "cpu":
        return Target()
    text = allocator_conf() if conf is None else conf
    settings = parse_alloc_conf(text) if text else AllocatorSettings()
    return target_of(device_here(device) if is_real(device) else find_device(device), settings)


def _fact(name: str, world_size: int) -> DeviceFact:
    device, memory_bytes = resolve_device(name)
    capacity = min(memory_bytes, _free_bytes(device)) if is_real(device) else memory_bytes
    capacity = memory_of_rank(device, capacity, world_size)
    return DeviceFact(name=device, simulated=not is_real(device), capacity_bytes=capacity, kernels=_kernels(device))


def _kernels(device: str) -> str:
    """Return what decides which kernels run and what they take; the size of the memory has no part in it."""
    target = find_target(device)
    if target.kind == "cpu":
        return target.kind
    return f"cuda {target.capability} {target.sm_count} {target.torch_version}"


def _free_bytes(device: str) -> int:
    """Return what can be allocated now: the CUDA context is there once the driver is asked."""
    if device == "cpu":
        import psutil

        return int(psutil.virtual_memory().available)
    import torch

    return int(torch.cuda.mem_get_info(device)[0])
