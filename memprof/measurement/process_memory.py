"""The memory of the process: the system's high-water mark of resident memory, and a limit on what may be allocated."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_MIB = 1 << 20
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h


def reset_peak_rss() -> bool:
    """Set the high-water mark to the present resident size (proc(5): clear_refs 5).

    Returns:
        False if the operating system cannot do it.
    """
    try:
        _CLEAR_REFS.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_rss_bytes() -> int:
    """Return the largest resident size in bytes since the last reset, or since the process began."""
    peak = _status_bytes("VmHWM")
    if peak is not None:
        return peak
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def rss_bytes() -> int:
    """Return the resident size of now; 0 where the system does not say (only Linux does)."""
    return _status_bytes("VmRSS") or 0


def data_bytes() -> int | None:
    """Return the bytes of the process's data segment; None if the system does not say (only Linux does)."""
    return _status_bytes("VmData")


def limit_memory(limit_bytes: int, beside: int | None) -> bool:
    """Limit the memory of tensors to about this many bytes, so that allocations beyond fail (RLIMIT_DATA).

    The system's limit also covers thread stacks and scratch memory of libraries, for which a fixed allowance is added.
    A caller who needs the limit to the byte compares the allocator's peak with it.

    Args:
        limit_bytes: The bytes that tensors may take.
        beside: The value of `data_bytes()` from before there were tensors.

    Returns:
        False if the system does not say how much memory the process has.
    """
    if beside is None:
        return False
    allowance = 64 * _MIB + 16 * _MIB * (os.cpu_count() or 1)
    limit = beside + limit_bytes + allowance
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return True


def give_back_at_once() -> None:
    """Make the C library return each larger block when it is freed, so that the limit counts what is in use.

    See mallopt(3).
    """
    with suppress(AttributeError, OSError):  # only the GNU library has it
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 64 * 1024)


def give_back_free_memory() -> None:
    """Make the C library return the free memory that it still holds (malloc_trim(3))."""
    with suppress(AttributeError, OSError):  # only the GNU library has it
        ctypes.CDLL(None).malloc_trim(0)


def _status_bytes(field: str) -> int | None:
    try:
        status = _STATUS.read_text(encoding="ascii")
    except OSError:
        return None
    values = (line.split()[1] for line in status.splitlines() if line.startswith(f"{field}:"))
    return next((int(value) * 1024 for value in values), None)


def device_limit(device: torch.device, limit_bytes: int | None) -> Callable[[], object]:
    """Return a function that sets a limit beyond which allocations fail.

    On the CPU the limit counts the memory that the process takes from this call on. On a GPU it counts everything that
    the allocator has reserved.

    Args:
        device: The device of the trial.
        limit_bytes: The bytes that tensors may take; None for no limit.
    """
    import torch  # the doctor asks this module about machines where torch may be broken

    if limit_bytes is None:
        return lambda: None
    if device.type == "cuda":
        share = min(1.0, limit_bytes / torch.cuda.get_device_properties(device).total_memory)
        return lambda: torch.cuda.set_per_process_memory_fraction(share, device)
    give_back_at_once()
    return partial(limit_memory, limit_bytes, data_bytes())
