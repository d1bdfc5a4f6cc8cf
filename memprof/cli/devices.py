"""The command `memprof devices`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from memprof.cli.options import DebugOption, JsonOption
from memprof.cli.output import print_json, print_table

if TYPE_CHECKING:
    from memprof.devices.catalog import SimulatedDevice
    from memprof.devices.host import Device


def devices(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List this machine's devices with their total and free memory, and the GPUs that can be predicted for."""
    from memprof.devices.catalog import catalog
    from memprof.devices.host import list_devices

    here, simulated = list_devices(), catalog()
    if as_json:
        print_json([*map(_here_as_json, here), *map(_simulated_as_json, simulated)])
        return
    _print_here(here)
    print()
    _print_simulated(simulated)


def _print_here(here: list[Device]) -> None:
    from memprof.units import format_size

    rows = [(one.device, one.name, format_size(one.total_bytes), format_size(one.free_bytes)) for one in here]
    print_table(["device", "name", "memory", "free"], rows, numbers=["memory", "free"])


def _print_simulated(simulated: tuple[SimulatedDevice, ...]) -> None:
    from memprof.units import format_size

    print(
        "GPUs that can be predicted for without having one. A size such as 24GiB works as well, and the file that "
        "MEMPROF_DEVICES names can add more."
    )
    print("(context: the range of the memory that CUDA itself takes)")
    rows = [
        (
            one.name,
            format_size(one.total_bytes) + ("" if one.memory_reported else " *"),
            "{}.{}".format(*one.compute_capability),
            str(one.sm_count),
            f"{one.bandwidth_gb_per_second} GB/s" if one.bandwidth_gb_per_second else "-",
            "{} to {}".format(*(format_size(size, 0) for size in one.context_range_bytes)),
        )
        for one in simulated
    ]
    numbers = ["memory", "capability", "SMs", "bandwidth", "context"]
    print_table(["device", *numbers], rows, numbers=numbers)
    print("* computed from a similar GPU; the others were read from a driver")


def _here_as_json(device: Device) -> dict[str, Any]:
    return {"simulated": False, **asdict(device)}


def _simulated_as_json(device: SimulatedDevice) -> dict[str, Any]:
    fields = asdict(device)
    low, high = fields.pop("context_range_bytes")
    return {
        "simulated": True,
        "device": fields.pop("name"),
        "name": fields.pop("title"),
        "total_bytes": fields.pop("total_bytes"),
        "free_bytes": None,
        **fields,
        "compute_capability": "{}.{}".format(*device.compute_capability),
        "context_low_bytes": low,
        "context_high_bytes": high,
    }
