"""The comparison document: what is saved, reported and gated. Nothing here imports torch.

Sizes are `int` bytes; an absent figure is null, never 0 or -1. `Comparison.model_json_schema()` is the published
JSON Schema (`memprof schema` prints it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from memprof.documents import Saved
from memprof.timeline import Timeline
from memprof.training.recipe import Recipe
from memprof.trust import AllocatorHistory, Confidence, Document, Validation

if TYPE_CHECKING:
    import pandas as pd

SCHEMA: Literal["memprof.comparison/1"] = "memprof.comparison/1"
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


class Environment(Document):
    """Where the figures were made."""

    memprof: str
    python: str
    platform: str
    processor: str
    cores: int
    threads: int
    memory_bytes: int
    torch: str
    cuda: str | None = None
    cudnn: str | None = None
    driver: str | None = None
    gpu: str | None = None
    gpu_memory_bytes: int | None = None
    allocator_conf: str | None = None
    command: str | None = None
    date: str


# What is known of the lengths of a workload's samples: it declares a `longest_batch`, with which the largest batch and
# model are found; they are always the same; or neither.
Lengths = Literal["longest_batch", "fixed", "unknown"]


class WorkloadInfo(Document):
    """What was trained: the MODEL argument, all its knobs, and how inputs were made.

    Attributes:
        lengths: what is known of the lengths of its samples; null in documents from before it was there.
        positions: the longest sample that the model takes, where it says so.
    """

    model: str
    name: str
    knobs: dict[str, Any]
    batch_size: int
    inputs: tuple[str, ...] = ()
    target: str | None = None
    scale: str | None = None
    lengths: Lengths | None = None
    positions: int | None = None


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


class Run(Document):
    """One optimizer on the workload: a trial's profile, or why there is none.

    Attributes:
        timeline: the memory through the last step; null in documents from before it was there.
        confidence: of a predicted run, what it rests on.
        validation: of a measured run, how far its prediction was off, where that was asked for.
        allocator_history: of a run measured on a CUDA device, what its allocator recorded.
        rank: of a training over several ranks, the one with the highest allocator peak: every other figure of the run
            is that rank's, but for the steps (the longest time of any rank, and the mean of all losses). Null for a
            single rank.
        ranks: all ranks in order; empty for a single one.
        notes: what the reader of the figures must know.
    """

    optimizer: OptimizerInfo
    device: str
    source: Literal["measured", "predicted"] = "measured"
    status: Literal["ok", "oom", "failed"]
    reason: str | None = None
    parameters: Parameters | None = None
    state: State | None = None
    peak: Peak | None = None
    breakdown: Breakdown | None = None
    phases: dict[str, PhasePeak] = Field(default_factory=dict)
    steps: Steps | None = None
    fit: Fit | None = None
    timeline: Timeline | None = None
    confidence: Confidence | None = None
    validation: Validation | None = None
    allocator_history: AllocatorHistory | None = None
    rank: int | None = None
    ranks: list[Rank] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    @property
    def job_state_bytes(self) -> int | None:
        """What the optimizers of all ranks hold together; None without a state."""
        if self.ranks:
            return sum(rank.state_bytes for rank in self.ranks)
        return self.state.bytes if self.state is not None else None


class Capacity(Document):
    """The memory that the fit columns fill: the device's own, or what `--budget` says."""

    bytes: int
    source: Literal["device", "budget"]


class Comparison(Saved):
    """Several optimizers on one workload."""

    maker = "memprof compare --export-json"
    schema_: Literal["memprof.comparison/1"] = Field(default=SCHEMA, alias="schema")
    environment: Environment
    workload: WorkloadInfo
    recipe: Recipe
    capacity: Capacity
    reference: str | None = None
    runs: list[Run]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per run with the columns of `memprof compare --export-csv`; sizes are bytes."""
        from memprof.report.frame import to_frame

        return to_frame(self)

    def to_markdown(self) -> str:
        """Return the Markdown report."""
        from memprof.report.markdown import to_markdown

        return to_markdown(self)

    def _repr_html_(self) -> str:
        from memprof.report.frame import to_html

        return to_html(self)
