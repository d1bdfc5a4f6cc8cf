"""`memprof devices`."""

from __future__ import annotations

from dataclasses import asdict

from memprof.cli.options import DebugOption, JsonOption
from memprof.cli.output import print_json, print_table


def devices(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List this machine's devices with their total and free memory."""
    from memprof.devices import list_devices
    from memprof.units import format_size

    found = list_devices()
    if as_json:
        print_json([asdict(device) for device in found])
        return
    rows = [(one.device, one.name, format_size(one.total_bytes), format_size(one.free_bytes)) for one in found]
    print_table(["device", "name", "memory", "free"], rows, numbers=["memory", "free"])
