"""The devices of this machine."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from memprof.devices.host import cpu_memory_bytes, processor_name


@dataclass(frozen=True)
class Device:
    """A device that memprof can train on.

    Attributes:
        device: what `--device` takes.
        name: of the processor or the GPU.
        total_bytes: its memory; for the CPU the control group's limit where that is lower than the machine's.
        free_bytes: what is free now; None where the driver does not say.
    """

    device: str
    name: str
    total_bytes: int
    free_bytes: int | None


def list_devices() -> list[Device]:
    """Return the CPU and the CUDA devices that PyTorch sees (CUDA_VISIBLE_DEVICES counts)."""
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
