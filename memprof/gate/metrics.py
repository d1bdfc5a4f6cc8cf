"""The figures that a budget can limit: where each is in a run, which direction is worse, and how large its noise is.

The noise depends on the kind of figure. Optimizer state, parameters and all predicted figures are exact. On a real
device, allocated memory varies by about 2 % from run to run (cuBLAS workspaces, kernels chosen by autotuning), reserved
memory by 5 % (fragmentation), and the resident memory of the process by 10 % (imports, threads, malloc). The figure of
NVML also depends on other processes, so it only warns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

from memprof.documents.comparison import FitAnswer, Run
from memprof.units import format_size

Source = Literal["measured", "predicted"]
ANY: Final = "any"  # the answer of a search whose knob does not change the peak, so that every value fits
Value = int | Literal["any"] | None

_EXACT = Fraction(0)
_ALLOCATED = Fraction(2, 100)
_RESERVED = Fraction(5, 100)
_PROCESS = Fraction(10, 100)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A kind of figure.

    Attributes:
        name: The key in the configuration.
        title: The name in sentences.
        read: A function that returns the figure of a finished run, or None if the run does not have it.
        category: The only category of the breakdown that the figure consists of; None if there are several.
        higher_is_better: Whether a limit is the smallest allowed value; otherwise it is the largest.
        in_bytes: Whether the figure is in bytes; otherwise it is a count.
        portable: Whether the figure is the same on every device and version, so that a baseline from another
            environment counts.
        noise: How much a measured figure varies from run to run, as a share.
        absent: Why a device may not have the figure.
    """

    name: str
    title: str
    read: Callable[[Run], Value]
    category: str | None = None
    higher_is_better: bool = False
    in_bytes: bool = True
    portable: bool = False
    noise: Fraction = _EXACT
    absent: str = "this run does not have it"

    def text(self, value: Value, exact: bool = False) -> str:
        """Return a figure as text. `exact` gives the number of bytes instead of a rounded size."""
        if value == ANY or value is None or not self.in_bytes:
            return "-" if value is None else str(value)
        return f"{value} bytes" if exact else format_size(int(value))

    def noise_of(self, source: Source) -> Fraction:
        """Return how much the figure varies from run to run, as a share; a predicted figure does not vary."""
        return _EXACT if source == "predicted" else self.noise

    def only_warns(self, source: Source, device: str) -> bool:
        """Return whether the figure never fails a build.

        That is so for NVML's figure of the process, on which other processes have an influence.
        """
        return self.name == "process_bytes" and source == "measured" and device.startswith("cuda")

    def best_of(self, values: list[int]) -> int:
        """Return the value that counts of several repeats.

        Resident memory can only be measured too high, so the smallest counts; of other figures the worst counts.
        """
        return min(values) if self.higher_is_better or self.name == "process_bytes" else max(values)


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
_NO_PROCESS = "the memory of the process cannot be measured there; `memprof doctor` says why"
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
            higher_is_better=True,
            in_bytes=False,
            noise=_ALLOCATED,
            absent=_NO_FIT,
        ),
        Metric(
            name="max_scale",
            title="largest model",
            read=_largest("model"),
            higher_is_better=True,
            in_bytes=False,
            noise=_ALLOCATED,
            absent="the workload names no scale knob, or the search found no answer",
        ),
    )
}
FITTED = ("max_batch_size", "max_scale")
