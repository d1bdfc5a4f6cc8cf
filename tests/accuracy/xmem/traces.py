"""Predicted allocations of a few measured runs, kept so that CI can hold the allocator model to real GPUs.

What is kept needs neither transformers nor a minute: sizes in bytes, and for a free the number of the allocation.
`python -m tests.accuracy.xmem.traces` makes `tests/data/accuracy/traces.json.gz` anew.
"""

from __future__ import annotations

import gzip
import json

from memprof.allocator.caching import CachingAllocator, Handle
from memprof.allocator.driver import SimulatedDriver
from memprof.devices.catalog import find_device
from memprof.devices.resolve import target_of
from memprof.prediction.cuda.semantics import CudaSemantics
from memprof.prediction.fake.training import fake_runs
from memprof.trace.attribution import build_trace
from memprof.trace.events import Trace
from tests.accuracy.xmem.language_models import FULL
from tests.accuracy.xmem.lengths import STEPS
from tests.accuracy.xmem.predictions import TORCH, trial_of
from tests.accuracy.xmem.truth import DATA, Row, read_rows

TRACES = DATA / "traces.json.gz"
NAMES = (
    "EleutherAI/gpt-neo-125M Adam b9 z1 rtx-4060",
    "EleutherAI/gpt-neo-125M SGD b35 z0 rtx-3060",
    "T5-small AdamW b29 z- rtx-4060",
)


def reserved_bytes(events: list[int], falling: bool) -> int:
    """Return the most memory that the allocator reserves.

    Args:
        events: bytes of an allocation, or `-1 - number` to free the allocation of that number.
        falling: whether the driver's newer segments lie below older ones.
    """
    allocator = CachingAllocator(driver=SimulatedDriver(None, falling))
    handles: list[Handle] = []
    for event in events:
        if event < 0:
            allocator.free(handles[-1 - event])
        else:
            handles.append(allocator.allocate(event))
    return allocator.peak_reserved_bytes


def read_traces() -> dict[str, list[int]]:
    """Return the kept allocations by the name of the row."""
    traces: dict[str, list[int]] = json.loads(gzip.decompress(TRACES.read_bytes()))
    return traces


def _trace(row: Row) -> list[int]:
    trial = trial_of(row, FULL)
    target = target_of(find_device(row.device), torch_version=TORCH)
    (run,) = fake_runs(trial.workload, [trial.optimizer], trial.recipe, trial.batch_size, CudaSemantics(target), STEPS)
    return _events(build_trace(run.entries))


def _events(trace: Trace) -> list[int]:
    numbers: dict[int, int] = {}
    events: list[int] = []
    for block, size in trace.events:
        if size > 0:
            numbers[block] = len(numbers)
            events.append(size)
        elif size < 0:
            events.append(-1 - numbers[block])
    return events


def main() -> None:
    """Predict the rows and write their allocations."""
    rows = {row.name: row for row in read_rows()}
    document = json.dumps({name: _trace(rows[name]) for name in NAMES}, separators=(",", ":"))
    TRACES.write_bytes(gzip.compress(document.encode(), mtime=0))


if __name__ == "__main__":
    main()
