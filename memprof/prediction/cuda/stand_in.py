"""The least of `torch.cuda` that a script asks before it trains: there is one device, and so much of it is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from memprof.devices.target import Target

if TYPE_CHECKING:
    from memprof.prediction.fake.dispatch import FakeOperators


@contextmanager
def cuda_is_available(mode: FakeOperators, target: Target) -> Iterator[None]:
    """Within the `with` block `torch.cuda` says that the target is here."""
    total = target.capacity_bytes or 1 << 40
    log = mode.log
    properties = SimpleNamespace(
        name=target.name,
        major=target.capability[0],
        minor=target.capability[1],
        total_memory=total,
        multi_processor_count=target.sm_count,
        warp_size=32,
        max_threads_per_multi_processor=2048,
    )

    def nothing(*args: Any, **kwargs: Any) -> None:
        return None

    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: target.name,
        "get_device_capability": lambda device=None: target.capability,
        "get_device_properties": lambda device=None: properties,
        "is_bf16_supported": lambda including_emulation=True: target.capability >= (8, 0),
        "mem_get_info": lambda device=None: (total - log.live_bytes, total),
        **dict.fromkeys(("memory_allocated", "memory_reserved"), lambda device=None: log.live_bytes),
        **dict.fromkeys(("max_memory_allocated", "max_memory_reserved"), lambda device=None: log.peak_bytes),
        **dict.fromkeys(("set_device", "synchronize", "empty_cache", "init", "_lazy_init", "ipc_collect"), nothing),
        **dict.fromkeys(("reset_peak_memory_stats", "manual_seed", "manual_seed_all", "seed_all"), nothing),
    }
    random: dict[str, Any] = {
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "get_rng_state_all": lambda: [torch.zeros(16, dtype=torch.uint8)],
        "set_rng_state": nothing,
        "set_rng_state_all": nothing,
    }
    with ExitStack() as stack:
        for name, answer in random.items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
            stack.enter_context(patch.object(torch.cuda.random, name, answer))
        for name, answer in answers.items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
        stack.enter_context(patch.object(torch._C, "_cuda_getCurrentRawStream", lambda device: 0, create=True))
        yield
