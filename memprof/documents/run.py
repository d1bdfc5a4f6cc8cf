"""The figures of one run: what a comparison holds of each optimizer. Sizes are `int` bytes; an absent one is null."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from memprof.documents.confidence import Document

CATEGORIES = (
    "parameters",
    "gradients",
    "optimizer_state",
    "activations",
    "temporaries",
    "buffers",
    "inputs",
    "workspace",
    "communication",
    "unattributed",
)


class OptimizerInfo(Document):
    """The optimizer as asked for, and the implementation that ran (`fused`, `foreach`, `for-loop`, `chunked` …)."""

    spec: str
    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    implementation: str | None = None


class Parameters(Document):
    """Unique parameters of the model: tied ones count once."""

    count: int
    trainable: int
    bytes: int


class State(Document):
    """What the optimizer holds between two steps, by walking it; parameters and gradients are not state.

    `bytes_per_parameter` divides by the trainable parameters.
    """

    bytes: int
    bytes_per_parameter: float
    by_dtype: dict[str, int]
    by_device: dict[str, int]


class Peak(Document):
    """The peak of a training step in the three layers, and the phase that sets the allocator's peak.

    Attributes:
        tensor_bytes: live storages that operators returned to the training step, byte-exact.
        allocated_bytes: the allocator's peak, kernel temporaries included.
        reserved_bytes: what the caching allocator took from the device; null on the CPU.
        process_bytes: the process's high-water RSS on the CPU, NVML's used memory of the process on a GPU.
        phase: the phase in which `allocated_bytes` was reached.
        step: the step in which it was reached, counted from 1 (1 is the step that creates the state).
        allocated_upper_bytes: a predicted run's upper bound on `allocated_bytes`; null where it was measured, or
            where nothing is known of how far it may be off.
        reserved_upper_bytes: the same for `reserved_bytes`.
        process_upper_bytes: the same for `process_bytes`.
    """

    tensor_bytes: int | None = None
    allocated_bytes: int
    reserved_bytes: int | None = None
    process_bytes: int | None = None
    phase: str
    step: int
    allocated_upper_bytes: int | None = None
    reserved_upper_bytes: int | None = None
    process_upper_bytes: int | None = None


class PhasePeak(Document):
    """The peaks within one phase, the largest over all steps; the upper bounds are as in `Peak`."""

    tensor_bytes: int | None = None
    allocated_bytes: int
    reserved_bytes: int | None = None
    allocated_upper_bytes: int | None = None
    reserved_upper_bytes: int | None = None


class Breakdown(Document):
    """Who holds the memory at the allocator's peak of the attributed step; every map sums to `total_bytes`.

    `by_category_and_module` is the cross table, which `memprof gate` explains growth by; empty in documents from before
    it was there.
    """

    total_bytes: int
    phase: str
    by_category: dict[str, int]
    by_module: dict[str, int]
    by_category_and_module: dict[str, dict[str, int]] = Field(default_factory=dict)


class Steps(Document):
    """Counted steps: wall seconds and loss of each (warm-up excluded from times, included in `losses`)."""

    seconds: list[float]
    losses: list[float]
    allocated_bytes: list[int]


class Rank(Document):
    """One of several ranks that share a training: what its device holds.

    Attributes:
        parameters_bytes: the whole model's under DDP, this rank's shards under FSDP.
        state_bytes: what this rank's optimizer holds between two steps.
        peak: of this rank's training steps.
    """

    rank: int
    device: str
    parameters_bytes: int
    state_bytes: int
    peak: Peak


class FitPoint(Document):
    """A knob value that was really trained, and the allocator peak it needed (null: it ran out of memory)."""

    value: int
    peak_bytes: int | None


class FitAnswer(Document):
    """The largest value of a knob whose peak stays within the capacity.

    Attributes:
        knob: `batch_size`, or the workload's scale knob.
        value: the answer; 0 where not even the smallest fits; null where the knob does not move the peak.
        parameters: parameters of the model at `value`, for a scale knob.
        accumulate: micro-batches of an optimizer step at `value`, for a batch size.
        global_batch: samples of an optimizer step at `value`, over all ranks and micro-batches, for a batch size, which
            is that of one micro-batch on one rank.
        peak_bytes: the peak at `value`.
        next_value: the next value, which does not fit, and `next_peak_bytes` what it would need; null where the range
            ends at `value`.
        phase: the phase that binds: in which the next value runs out of memory.
        method: `extrapolated` from `points`; `confirmed`: `value` was trained within the capacity and the next
            value was shown not to fit; `predicted`: the same without a device, by predicting both.
        points: the values that were trained, or predicted.
        notes: what must be known of the answer, such as that the range ended before the memory did.
    """

    knob: str
    value: int | None
    parameters: int | None = None
    accumulate: int | None = None
    global_batch: int | None = None
    peak_bytes: int | None = None
    next_value: int | None = None
    next_peak_bytes: int | None = None
    phase: str | None = None
    method: Literal["extrapolated", "confirmed", "predicted"]
    points: list[FitPoint]
    notes: list[str] = Field(default=[])


class Fit(Document):
    """The largest batch and the largest model within the capacity; null where it was not asked or cannot be said."""

    batch_size: FitAnswer | None = None
    model: FitAnswer | None = None
