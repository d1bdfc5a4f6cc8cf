"""What a budget can limit: where each figure stands in a run, which way is worse, and how far it moves by itself.

The noise rules, by what a figure is: optimizer state, parameters and everything predicted are exact; what a real
device's allocator handed out repeats to about 2 % (cuBLAS workspaces, kernels chosen by autotuning), what it reserved
to 5 % (fragmentation), the process's resident memory to 10 % (imports, threads, malloc). NVML's figure has other
processes' doings in it, so it only warns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

from memprof.documents.comparison import FitAnswer, Run
from memprof.units import format_size

Source = Literal["measured", "predicted"]
ANY: Final = "any"  # a fit without a limit: the knob does not move the peak
Value = int | Literal["any"] | None

_EXACT = Fraction(0)
_ALLOCATED = Fraction(2, 100)
_RESERVED = Fraction(5, 100)
_PROCESS = Fraction(10, 100)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure of a run.

    Attributes:
        name: its key in the configuration.
        title: what sentences call it.
        read: takes it from a finished run; None where the run has none.
        category: the category of the breakdown that it consists of, where it is one alone.
        lower: a limit is the least it may be; else it is the most.
        size: it is in bytes; else it is a count.
        portable: it is the same on every device and version, so a baseline from elsewhere counts.
        noise: the share by which a measured figure moves from run to run.
        absent: why a device may not give it.
    """

    name: str
    title: str
    read: Callable[[Run], Value]
    category: str | None = None
    lower: bool = False
    size: bool = True
    portable: bool = False
    noise: Fraction = _EXACT
    absent: str = "this run does not say"

    def text(self, value: Value, exact: bool = False) -> str:
        """Return a figure as it is printed; `exact` prints bytes as they are."""
        if value == ANY or value is None or not self.size:
            return "-" if value is None else str(value)
        return f"{value} bytes" if exact else format_size(int(value))

    def noise_of(self, source: Source) -> Fraction:
        """Return the share by which the figure moves by itself: nothing that is predicted does."""
        return _EXACT if source == "predicted" else self.noise

    def only_warns(self, source: Source, device: str) -> bool:
        """Whether the figure is too loosely tied to the program to fail a build: what NVML says of the process."""
        return self.name == "process_bytes" and source == "measured" and device.startswith("cuda")

    def best_of(self, values: list[int]) -> int:
        """Return the figure of several repeats: resident memory errs upwards, so its least; else the worst."""
        return min(values) if self.lower or self.name == "process_bytes" else max(values)


def _peak(field: str) -> Callable[[Run], Value]:
    def read(run: Run) -> Value:
        value: int | None = getattr(run.peak, field) if run.peak is not None else None
        return value

    return read


def _largest(field: Literal["batch_size", "model"]) -> Callable[[Run], Value]:
    def read(run: Run) -> Value:
        answer: FitAnswer | None = getattr(run.fit, field) if run.fit is not None else None
        if answer is None:
            return None
        return ANY if answer.value is None else answer.value

    return read


_NO_POOL = "the CPU has no caching allocator, so nothing is reserved; limit peak_allocated_bytes"
_NO_BOUND = "only predictions have an upper bound, and this run has none; limit the figure itself"
_NO_TENSORS = "on a GPU the allocator's blocks are rounded, so tensors are not counted; limit peak_allocated_bytes"
_NO_PROCESS = "nothing says what the process takes there; `memprof doctor` says why"
_NO_FIT = "the search found no answer; does the workload take this knob?"

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="state_bytes",
            title="optimizer state",
            read=lambda run: run.state.bytes if run.state is not None else None,
            category="optimizer_state",
            portable=True,
        ),
        Metric(
            name="parameters_bytes",
            title="parameters",
            read=lambda run: run.parameters.bytes if run.parameters is not None else None,
            category="parameters",
            portable=True,
        ),
        Metric(name="peak_tensor_bytes", title="tensors at the peak", read=_peak("tensor_bytes"), absent=_NO_TENSORS),
        Metric(name="peak_allocated_bytes", title="allocated peak", read=_peak("allocated_bytes"), noise=_ALLOCATED),
        Metric(
            name="peak_reserved_bytes",
            title="reserved peak",
            read=_peak("reserved_bytes"),
            noise=_RESERVED,
            absent=_NO_POOL,
        ),
        Metric(
            name="process_bytes",
            title="process memory",
            read=_peak("process_bytes"),
            noise=_PROCESS,
            absent=_NO_PROCESS,
        ),
        Metric(
            name="peak_allocated_upper_bytes",
            title="upper bound of the allocated peak",
            read=_peak("allocated_upper_bytes"),
            absent=_NO_BOUND,
        ),
        Metric(
            name="peak_reserved_upper_bytes",
            title="upper bound of the reserved peak",
            read=_peak("reserved_upper_bytes"),
            absent=_NO_BOUND,
        ),
        Metric(
            name="process_upper_bytes",
            title="upper bound of the process memory",
            read=_peak("process_upper_bytes"),
            absent=_NO_BOUND,
        ),
        Metric(
            name="max_batch_size",
            title="largest batch",
            read=_largest("batch_size"),
            lower=True,
            size=False,
            noise=_ALLOCATED,
            absent=_NO_FIT,
        ),
        Metric(
            name="max_scale",
            title="largest model",
            read=_largest("model"),
            lower=True,
            size=False,
            noise=_ALLOCATED,
            absent="the workload names no scale knob, or the search found no answer",
        ),
    )
}
FITTED = ("max_batch_size", "max_scale")
