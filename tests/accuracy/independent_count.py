"""The allocator's peak of each training step, counted without memprof's tracing: run as a script, prints JSON.

    python tests/accuracy/independent_count.py '[["gpt2", {"n_layers": 2}, BATCH_SIZE, "torch.optim:Adam", {}]]'

It prints a line for each training, and runs each in a process of its own, forked before the first.

Only the workload is memprof's. The loop is written out by hand and runs under torch's public profiler with all its
operator callbacks; the events are summed in the order of their time stamps.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

import torch
import torch._dynamo  # what the first optimizer of a process imports: once for all
from torch.profiler import ProfilerActivity, profile

from memprof.documents.workload_spec import WorkloadSpec
from memprof.workloads.loader import load_workload

STEPS = 4


def main() -> None:
    for case in json.loads(sys.argv[1]):
        pid = os.fork()
        if pid == 0:
            print(json.dumps(peaks_of_steps(*case)), flush=True)
            os._exit(0)
        if status := os.waitpid(pid, 0)[1]:
            sys.exit(os.waitstatus_to_exitcode(status))


def peaks_of_steps(
    name: str, knobs: dict[str, Any], batch_size: int, optimizer_path: str, options: dict[str, Any]
) -> list[int]:
    """Train, and return the peak of each step."""
    workload = load_workload(WorkloadSpec(model=name, knobs=knobs)).workload
    module, _, attribute = optimizer_path.partition(":")
    optimizer_class = getattr(importlib.import_module(module), attribute)
    torch.manual_seed(0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model = workload.model().train()
        optimizer = optimizer_class(model.parameters(), **options)
        for number in range(STEPS):
            with torch.profiler.record_function(f"step {number + 1}"):
                batch = workload.batch(batch_size)
                loss = workload.loss(model, batch)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    events = profiler.profiler.kineto_results.events()
    boundaries = {e.name(): e.start_ns() for e in events if e.name().startswith("step ")}
    memory = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return step_peaks(memory, [boundaries[f"step {n + 1}"] for n in range(STEPS)])


def step_peaks(memory: list[tuple[int, int]], starts: list[int]) -> list[int]:
    """Return the largest running sum within each step; a step begins with the level that it finds."""
    peaks = [0] * len(starts)
    level = 0
    for time, size in memory:
        step = sum(time >= start for start in starts) - 1
        if step >= 0:
            peaks[step] = max(peaks[step], level)
        level += size
        if step >= 0:
            peaks[step] = max(peaks[step], level)
    return peaks


if __name__ == "__main__":
    main()
