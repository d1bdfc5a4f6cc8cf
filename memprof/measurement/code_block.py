"""Measures what a block of a program allocates, in the process that runs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from memprof.measurement.record.profiler import ProfilerRecorder
from memprof.trace.attribution import build_trace
from memprof.trace.events import Trace
from memprof.trace.peaks import span_peaks
from memprof.units import format_size


@dataclass
class BlockUsage:
    """The memory that a block allocated. The figures are filled in when the block ends.

    Only memory that is allocated inside the block counts. Memory from before neither adds to the figures nor, if it is
    freed inside the block, takes from them.

    Attributes:
        device: The kind of device whose allocator was watched, `cpu` or `cuda`.
        peak_bytes: The most bytes that were allocated at once.
        retained_bytes: The bytes that are still allocated at the end.
        operators: The bytes at the peak by the operator that allocated them, largest first.
    """

    device: str
    peak_bytes: int = 0
    retained_bytes: int = 0
    operators: dict[str, int] = field(default_factory=dict)

    def describe(self, most: int = 3) -> str:
        """Return the figures in words, as in `12.00 MiB at the peak (8.00 MiB by aten::addmm, ...)`.

        Args:
            most: The number of operators to name.
        """
        top = [f"{format_size(size)} by {name or 'no operator'}" for name, size in [*self.operators.items()][:most]]
        more = ", ..." if len(self.operators) > most else ""
        listed = f" ({', '.join(top)}{more})" if top else ""
        return f"{format_size(self.peak_bytes)} at the peak{listed}"


@contextmanager
def measure_block(device: str = "cpu") -> Iterator[BlockUsage]:
    """Record every allocation and free of an allocator while the `with` block runs, also those inside kernels.

    PyTorch has one profiler for each process, so no other profiler may run at the same time.

    Args:
        device: The kind of device, `cpu` or `cuda`. All GPUs of the process count together.

    Yields:
        The usage, which is filled in when the block ends.
    """
    usage = BlockUsage(device)
    recorder = ProfilerRecorder(device)
    recorder.start()
    recorder.follow_operators()
    try:
        yield usage
    finally:
        _fill(usage, build_trace(recorder.stop()))


def _fill(usage: BlockUsage, trace: Trace) -> None:
    (peak,) = span_peaks(trace)
    usage.peak_bytes = peak.peak_bytes
    usage.retained_bytes = sum(event.size for event in trace.events)
    held: Counter[int] = Counter()
    for number, size in trace.events[: peak.event + 1]:
        held[number] += size
    by_operator: Counter[str] = Counter()
    for number, size in held.items():
        by_operator[trace.blocks[number].operator] += size
    usage.operators = {name: size for name, size in by_operator.most_common() if size}
