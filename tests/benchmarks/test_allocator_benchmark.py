"""How fast a replay is, and how much faster than the slow and obvious allocator: `pytest --benchmark-only -s`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from memprof.allocator.caching import CachingAllocator
from memprof.allocator.replay_events import replay
from memprof.allocator.settings import AllocatorSettings
from memprof.trace.events import Block, Event, Trace
from tests.data.allocator.slow_allocator import SlowAllocator

MIB = 2**20
LAYERS = 100


def training_trace(n_layers: int) -> Trace:
    """Return two steps of something like a transformer: 12 activations and 4 temporaries per layer."""
    trace = Trace()

    def allocate(size: int) -> int:
        trace.events.append(Event(len(trace.blocks), size))
        trace.blocks.append(Block(size, "forward"))
        return len(trace.blocks) - 1

    def free(number: int) -> None:
        trace.events.append(Event(number, -trace.blocks[number].size))

    weights = [allocate(MIB * (1 + part % 5) // 2) for _ in range(n_layers) for part in range(12)]
    for _ in range(2):
        saved = [[allocate(MIB * (1 + part)) for part in range(12)] for _ in range(n_layers)]
        gradients = []
        for layer in reversed(saved):
            for part, number in enumerate(layer):
                scratch = allocate(MIB * (1 + part) // 3)
                free(number)
                gradients.append(allocate(MIB * (1 + part % 5) // 2))
                free(scratch)
        for number in gradients:
            free(number)
    assert weights
    return trace


@pytest.mark.parametrize("expandable", [False, True])
def test_replay(benchmark: Callable[..., Any], expandable: bool) -> None:
    trace, settings = training_trace(LAYERS), AllocatorSettings(expandable_segments=expandable)
    report = benchmark(lambda: replay(trace, CachingAllocator(2**40, settings)))
    start = time.perf_counter()
    slow, addresses = SlowAllocator(2**40, settings), {}
    peak = 0
    for number, size in trace.events:
        if size > 0:
            addresses[number] = slow.allocate(size, 0)
            peak = max(peak, slow.reserved)
        else:
            slow.free(addresses.pop(number))
    slow_seconds = time.perf_counter() - start
    assert peak == report.peak_reserved_bytes
    seconds = benchmark.stats["median"]  # type: ignore[attr-defined]
    print(f"\n{len(trace.events) / seconds:,.0f} events/s, {slow_seconds / seconds:,.0f} x the slow allocator")
