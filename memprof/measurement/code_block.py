"""What a block of a program allocates, in the process that runs it."""

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
    """What a block allocated; filled in when it ends.

    Only what is allocated inside counts: what lived before the block neither adds to its figures nor, when it is
    freed inside, takes from them.

    Attributes:
        device: `cpu` or `cuda`, whose allocator was watched.
        peak_bytes: the most that lived at once.
        retained_bytes: what still lives at the end.
        operators: at the peak, the bytes by the operator that allocated them, largest first.
    """

    device: str
    peak_bytes: int = 0
    retained_bytes: int = 0
    operators: dict[str, int] = field(default_factory=dict)

    def describe(self, most: int = 3) -> str:
        """Return `12.00 MiB at the peak (8.00 MiB by aten::addmm, ...)`."""
        top = [f"{format_size(size)} by {name or 'no operator'}" for name, size in [*self.operators.items()][:most]]
        more = ", ..." if len(self.operators) > most else ""
        listed = f" ({', '.join(top)}{more})" if top else ""
        return f"{format_size(self.peak_bytes)} at the peak{listed}"


@contextmanager
def measure_block(device: str = "cpu") -> Iterator[BlockUsage]:
    """Watch an allocator while a block runs: every allocation and free, scratch inside of kernels included.

    PyTorch has one profiler for each process, so no other may run meanwhile.

    Args:
        device: `cpu` or `cuda`; all GPUs of the process count together.
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
