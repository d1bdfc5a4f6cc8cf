"""How far the figures of a run can be trusted: what a prediction rests on, and what measuring says to it.

Parts of the comparison document (`memprof.documents.comparison`). Nothing here imports torch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Document(BaseModel):
    """A part of a saved document: it does not change, and has no field that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SizeRange(Document):
    """A size that is known to lie between two others: one of the terms of an upper bound.

    Attributes:
        what: has that size, for example `CUDA context`.
        layer: the innermost layer of memory that it counts in.
        low_bytes: the least it was seen to be.
        bytes: what the point estimate takes.
        high_bytes: the most; the upper bound takes what this is more than `bytes`.
        source: where the range comes from.
    """

    what: str
    layer: Literal["allocated", "reserved", "process"]
    low_bytes: int
    bytes: int
    high_bytes: int
    source: str


class Confidence(Document):
    """What a prediction and its upper bounds rest on.

    Attributes:
        basis: what was computed, chosen by a rule or taken from a table, a sentence each.
        warnings: where something had to be guessed, a sentence each with the operator's name.
        ranges: the terms of the upper bound, as they count at the peak.
    """

    basis: list[str]
    warnings: list[str] = []
    ranges: list[SizeRange] = []


class Deviation(Document):
    """A predicted figure beside the measured one of the same trial.

    Attributes:
        layer: `state`, or the layer of memory: `tensors`, `allocated`, `reserved`, `process`.
        phase: the phase whose peak it is; null for the peak of all steps.
        category: the category of the breakdown at the peak; null for a peak.
        predicted_bytes: what was predicted.
        measured_bytes: what was measured.
    """

    layer: Literal["state", "tensors", "allocated", "reserved", "process"]
    phase: str | None = None
    category: str | None = None
    predicted_bytes: int
    measured_bytes: int

    @property
    def error_bytes(self) -> int:
        """The signed error: above 0, too much was predicted."""
        return self.predicted_bytes - self.measured_bytes

    @property
    def error(self) -> float | None:
        """The signed error as a share of what was measured; None of nothing."""
        return self.error_bytes / self.measured_bytes if self.measured_bytes else None


class Validation(Document):
    """The prediction of a trial that was also measured.

    Attributes:
        reason: why there is no prediction to compare with; null where there is one.
        upper_bytes: the predicted upper bound of the outermost layer that both know; null where there is none.
        upper_held: whether the measured figure stayed within it; null where there is none.
        deviations: figure by figure; empty without a prediction.
    """

    reason: str | None = None
    upper_bytes: int | None = None
    upper_held: bool | None = None
    deviations: list[Deviation] = []


class AllocatorHistory(Document):
    """What the CUDA caching allocator itself recorded from the process's start to its end, and its replay.

    Attributes:
        events: allocations and frees in the recording.
        segment_events: how often memory was taken from the driver or given back.
        requested_bytes: the most that was asked for at once, before rounding.
        allocated_bytes: the most that was handed out at once, rounded.
        reserved_bytes: the most that was held of the device at once.
        fragmentation_bytes: reserved and not handed out, right after `reserved_bytes` was first reached.
        replayed_reserved_bytes: `reserved_bytes` by memprof's own model of the allocator, given the same requests;
            null where it does not model the recording (private pools of CUDA graphs).
        exact: every segment and every address of the model is as recorded; null without a replay.
    """

    events: int
    segment_events: int
    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    fragmentation_bytes: int
    replayed_reserved_bytes: int | None = None
    exact: bool | None = None
