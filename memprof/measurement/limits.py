"""Lets a trial have only so much of its device's memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from memprof.measurement.process_memory import data_bytes, give_back_at_once, limit_memory


def device_limit(device: torch.device, limit_bytes: int | None) -> Callable[[], object]:
    """Return a function that sets the limit, from when on allocations beyond it fail.

    On the CPU the limit counts what the process takes from this call on, on a GPU all that its allocator has.

    Args:
        device: of the trial.
        limit_bytes: for its tensors; None for no limit.
    """
    if limit_bytes is None:
        return lambda: None
    if device.type == "cuda":
        share = min(1.0, limit_bytes / torch.cuda.get_device_properties(device).total_memory)
        return lambda: torch.cuda.set_per_process_memory_fraction(share, device)
    give_back_at_once()
    return partial(limit_memory, limit_bytes, data_bytes())
