"""What a step allocates, counted in PyTorch's own allocator, kernels included: nothing of memprof takes part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_bytes(step: Callable[[], Any]) -> int:
    """Return the most bytes that `step` held at once beyond what was allocated when it began."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        step()
    allocations = []
    nodes = list(run.profiler.kineto_results.experimental_event_tree())
    while nodes:
        node = nodes.pop()
        nodes.extend(node.children)
        if "Allocation" in str(node.tag):
            allocations.append((node.start_time_ns, node.extra_fields.alloc_size))
    held = peak = 0
    for _, size in sorted(allocations, key=lambda event: event[0]):
        held += size
        peak = max(peak, held)
    return peak
