"""The document of `memprof advise`: the peak of a training now, and the peak with each suggested change."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from memprof.documents.base import Saved
from memprof.documents.comparison import Environment, WorkloadInfo
from memprof.documents.confidence import Document
from memprof.documents.fit import FitDevice
from memprof.documents.recipe import Recipe


class PredictedFigures(Document):
    """The predicted memory of a training.

    Attributes:
        peak_bytes: The peak in bytes: on a GPU the memory that the allocator reserves from the driver, on the CPU the
            allocated memory.
        fits: Whether the peak stays within the usable memory of the device.
        phase: The phase that sets the peak, or in which the memory runs out.
        held: The bytes of each category at the peak of the allocated memory.
        held_phase: The phase of the peak that `held` describes.
    """

    peak_bytes: int
    fits: bool
    phase: str
    held: dict[str, int]
    held_phase: str


class Suggestion(Document):
    """One change, or several changes together.

    Attributes:
        changes: The names of the changes.
        how: The options that make the changes, in place of the present ones.
        effects: What each change does to the training.
        disturbance: The largest disturbance among the changes: 0 none, 1 the same result in more time, 2 other
            rounding, 3 another optimizer.
        figures: The predicted memory with the changes; None if the model cannot be trained with them.
        saves_bytes: How many bytes the peak falls by; negative if it rises.
        remark: The reason why the changes save nothing, if they do not.
        reason: The reason why there are no figures.
    """

    changes: list[str]
    how: str
    effects: list[str]
    disturbance: int
    figures: PredictedFigures | None = None
    saves_bytes: int | None = None
    remark: str | None = None
    reason: str | None = None

    @property
    def fits(self) -> bool:
        """Whether the training fits with the changes."""
        return self.figures is not None and self.figures.fits


class AdviceReport(Saved):
    """The changes that make a training fit into a device.

    Attributes:
        environment: The machine and the software versions.
        workload: The workload that is trained.
        recipe: The present training recipe.
        optimizer: The spec of the present optimizer.
        device: The device that the training shall fit into.
        margin: The memory that is left free: a share (`5%`) or a size (`1GiB`).
        now: The predicted memory of the present training.
        suggestions: Single changes and the combinations that make a difference, the best first.
        evaluations: The number of recipes that were traced.
        notes: What a reader must know about the predictions.
    """

    maker = "memprof advise --export-json"
    schema_: Literal["memprof.advice/1"] = Field(default="memprof.advice/1", alias="schema")
    environment: Environment
    workload: WorkloadInfo
    recipe: Recipe
    optimizer: str
    device: FitDevice
    margin: str
    now: PredictedFigures
    suggestions: list[Suggestion]
    evaluations: int
    notes: list[str] = Field(default=[])

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        text: str = self._rendered("to_markdown")
        return text
