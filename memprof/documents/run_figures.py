"""The figures of one run, which a comparison holds for each optimizer.

Sizes are whole numbers of bytes, and a figure that is absent is null.
"""

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
    """The optimizer as the user asked for it, and the implementation that ran.

    Attributes:
        spec: The canonical spec.
        name: The name in the registry, or the import path.
        options: The keyword arguments of the constructor.
        implementation: The implementation that ran, such as `fused`, `foreach`, `for-loop` or `chunked`; null if it is
            not known.
    """

    spec: str
    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    implementation: str | None = None


class Parameters(Document):
    """The parameters of the model. Tied parameters count once.

    Attributes:
        count: The number of parameters.
        trainable: The number of parameters that require gradients.
        bytes: The size of all parameters.
    """

    count: int
    trainable: int
    bytes: int


class State(Document):
    """The state that the optimizer holds between two steps, found by walking the optimizer.

    Parameters and gradients are not part of the state.

    Attributes:
        bytes: The size of the state.
        bytes_per_parameter: The size of the state divided by the number of trainable parameters.
        by_dtype: The bytes of each dtype.
        by_device: The bytes on each device.
    """

    bytes: int
    bytes_per_parameter: float
    by_dtype: dict[str, int]
    by_device: dict[str, int]


class Peak(Document):
    """The peak of a training step in the three layers of memory, and the phase that sets the allocator's peak.

    Attributes:
        tensor_bytes: The byte-exact size of the live storages that operators returned to the training step.
        allocated_bytes: The allocator's peak, including the temporaries of kernels.
        reserved_bytes: The memory that the caching allocator took from the device; null on the CPU.
        process_bytes: The memory of the process: its high-water RSS on the CPU, NVML's used memory on a GPU.
        phase: The phase in which `allocated_bytes` was reached.
        step: The step in which it was reached, counted from 1. Step 1 creates the optimizer's state.
        allocated_upper_bytes: The upper bound on `allocated_bytes` of a predicted run; null if the run was measured, or
            if nothing is known about the error of the prediction.
        reserved_upper_bytes: The upper bound on `reserved_bytes`, likewise.
        process_upper_bytes: The upper bound on `process_bytes`, likewise.
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
    """The peaks within one phase, each the largest over all steps. The fields mean the same as in `Peak`."""

    tensor_bytes: int | None = None
    allocated_bytes: int
    reserved_bytes: int | None = None
    allocated_upper_bytes: int | None = None
    reserved_upper_bytes: int | None = None


class Breakdown(Document):
    """What holds the memory at the allocator's peak of the attributed step.

    The values of each map sum to `total_bytes`.
    Attributes:
        total_bytes: The allocated memory at the peak.
        phase: The phase of the peak.
        by_category: The bytes of each category.
        by_module: The bytes of each module.
        by_category_and_module: The bytes of each category and module, with which `memprof gate` explains growth; empty
            in documents of older versions.
    """

    total_bytes: int
    phase: str
    by_category: dict[str, int]
    by_module: dict[str, int]
    by_category_and_module: dict[str, dict[str, int]] = Field(default_factory=dict)


class Steps(Document):
    """The figures of each training step.

    Attributes:
        seconds: The wall-clock time of each counted step, in seconds; warm-up steps are left out.
        losses: The loss of each step, including the warm-up steps.
        allocated_bytes: The allocator's peak of each step.
    """

    seconds: list[float]
    losses: list[float]
    allocated_bytes: list[int]


class Rank(Document):
    """The memory of one of the ranks that share a training.

    Attributes:
        rank: The number of the rank, counted from 0.
        device: The device of the rank.
        parameters_bytes: The size of the parameters on this rank: the whole model with DDP, its shards with FSDP.
        state_bytes: The state that the optimizer of this rank holds between two steps.
        peak: The peak of the training steps on this rank.
    """

    rank: int
    device: str
    parameters_bytes: int
    state_bytes: int
    peak: Peak


class FitPoint(Document):
    """A value of the knob that was trained or predicted.

    Attributes:
        value: The value of the knob.
        peak_bytes: The allocator's peak at this value; null if it ran out of memory.
    """

    value: int
    peak_bytes: int | None


class FitAnswer(Document):
    """The largest value of a knob whose peak stays within the capacity.

    Attributes:
        knob: `batch_size`, the workload's scale knob, or the name of a script's placeholder.
        value: The answer. 0 if not even the smallest value fits; null if the knob does not change the peak.
        parameters: The number of parameters of the model at `value`, for a scale knob.
        accumulate: The number of micro-batches of an optimizer step at `value`, for a batch size.
        global_batch: The samples of an optimizer step at `value`, over all ranks and micro-batches, for a batch size;
            the batch size itself is that of one micro-batch on one rank.
        peak_bytes: The peak at `value`.
        next_value: The next value, which does not fit; null if the range ends at `value`.
        next_peak_bytes: The peak that the next value would need; null if it is not known.
        phase: The phase that limits the answer: the one in which the next value runs out of memory.
        method: `extrapolated`: computed from `points`. `confirmed`: `value` was trained within the capacity, and the
            next value was shown not to fit. `predicted`: both were predicted, without a device.
        points: The values that were trained or predicted.
        notes: What a reader must know about the answer, for example that every value up to the end of the range fits.
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
    """The largest batch and the largest model within the capacity.

    Attributes:
        batch_size: The answer for the batch size, or for the placeholder of a script; null if it was not asked for or
            could not be found.
        model: The answer for the workload's scale knob; null if it was not asked for or could not be found.
    """

    batch_size: FitAnswer | None = None
    model: FitAnswer | None = None
