"""How far the figures of a run can be trusted: the basis of a prediction, and its deviation from the measurement.

These are parts of the comparison document (`memprof.documents.comparison`). Nothing here imports torch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Document(BaseModel):
    """The base class of the parts of saved documents: immutable, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SizeRange(Document):
    """A size that is known only as a range: one of the terms of an upper bound.

    Attributes:
        what: The thing that has this size, for example `CUDA context`.
        layer: The innermost layer of memory that the size counts in.
        low_bytes: The smallest size that was seen.
        bytes: The size that the prediction uses.
        high_bytes: The largest size. The upper bound adds the difference between this size and `bytes`.
        source: Where the range comes from.
    """

    what: str
    layer: Literal["allocated", "reserved", "process"]
    low_bytes: int
    bytes: int
    high_bytes: int
    source: str


class Confidence(Document):
    """The basis of a prediction and of its upper bounds.

    Attributes:
        basis: Sentences that say what was computed, chosen by a rule, or taken from a table.
        warnings: Sentences that say where something had to be guessed; each names the operator.
        ranges: The terms of the upper bound, as they count at the peak.
    """

    basis: list[str]
    warnings: list[str] = []
    ranges: list[SizeRange] = []


class Deviation(Document):
    """A predicted figure next to the measured figure of the same trial.

    Attributes:
        layer: `state`, or the layer of memory: `tensors`, `allocated`, `reserved` or `process`.
        phase: The phase that the peak belongs to; null for the peak of all steps.
        category: The category of the breakdown at the peak; null if the figure is a peak.
        predicted_bytes: The predicted figure, in bytes.
        measured_bytes: The measured figure, in bytes.
    """

    layer: Literal["state", "tensors", "allocated", "reserved", "process"]
    phase: str | None = None
    category: str | None = None
    predicted_bytes: int
    measured_bytes: int

    @property
    def error_bytes(self) -> int:
        """The signed error in bytes; it is positive if the prediction is too high."""
        return self.predicted_bytes - self.measured_bytes

    @property
    def error(self) -> float | None:
        """The signed error as a share of the measured figure; None if the measured figure is 0."""
        return self.error_bytes / self.measured_bytes if self.measured_bytes else None


class Validation(Document):
    """The comparison of a trial's prediction with its measurement.

    Attributes:
        reason: The reason why there is no prediction to compare with; null if there is one.
        upper_bytes: The predicted upper bound, for the outermost layer of memory that was both predicted and measured;
            null if there is no bound.
        upper_held: Whether the measured figure stayed within the upper bound; null if there is no bound.
        deviations: The deviation of every figure; empty if there is no prediction.
    """

    reason: str | None = None
    upper_bytes: int | None = None
    upper_held: bool | None = None
    deviations: list[Deviation] = []


class AllocatorHistory(Document):
    """The CUDA caching allocator's own recording, from the start of the process to its end, and the replay of it.

    Attributes:
        events: The number of allocations and frees in the recording.
        segment_events: How often the allocator took memory from the driver or returned it.
        requested_bytes: The peak of the requested memory, before rounding.
        allocated_bytes: The peak of the allocated memory, after rounding.
        reserved_bytes: The peak of the memory that the allocator held of the device.
        fragmentation_bytes: The memory that was reserved but not allocated, right after `reserved_bytes` was first
            reached.
        replayed_reserved_bytes: The value of `reserved_bytes` when memprof's own model of the allocator serves the same
            requests; null if it does not model the recording (private pools of CUDA graphs).
        exact: Whether every segment and every address of the model is the same as in the recording; null without a
            replay.
    """

    events: int
    segment_events: int
    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    fragmentation_bytes: int
    replayed_reserved_bytes: int | None = None
    exact: bool | None = None
