"""The document of `memprof advise`: what training takes now, and what each change would make of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from memprof.documents.base import Saved
from memprof.documents.comparison import Environment, WorkloadInfo
from memprof.documents.confidence import Document
from memprof.documents.fit import FitDevice
from memprof.documents.recipe import Recipe


class Figures(Document):
    """What a training is predicted to take.

    Attributes:
        peak_bytes: the most at once; for a GPU what its allocator takes from the driver.
        fits: it stays within what is usable of the device.
        phase: that sets the peak, or in which the memory runs out.
        held: bytes by category at the peak of the blocks in use, and `held_phase` its phase.
    """

    peak_bytes: int
    fits: bool
    phase: str
    held: dict[str, int]
    held_phase: str


class Suggestion(Document):
    """One change, or several together.

    Attributes:
        changes: their names.
        how: the options that do it, to be put in place of those in use.
        effects: what each does to the training.
        disturbance: of the largest: 0 nothing, 1 the same result in more time, 2 other rounding, 3 another optimizer.
        figures: None where the changes do not go with the model; `reason` says why.
        saves_bytes: what the peak falls by; below 0 where it rises.
        remark: why it saves nothing, where it does not.
    """

    changes: list[str]
    how: str
    effects: list[str]
    disturbance: int
    figures: Figures | None = None
    saves_bytes: int | None = None
    remark: str | None = None
    reason: str | None = None

    @property
    def fits(self) -> bool:
        """Whether it makes the training fit."""
        return self.figures is not None and self.figures.fits


class AdviceReport(Saved):
    """What to change so that a training fits.

    Attributes:
        now: the training as it is.
        suggestions: single changes and the combinations that matter, the best first.
        evaluations: recipes that were traced.
    """

    maker = "memprof advise --export-json"
    schema_: Literal["memprof.advice/1"] = Field(default="memprof.advice/1", alias="schema")
    environment: Environment
    workload: WorkloadInfo
    recipe: Recipe
    optimizer: str
    device: FitDevice
    margin: str
    now: Figures
    suggestions: list[Suggestion]
    evaluations: int
    notes: list[str] = Field(default=[])

    def to_markdown(self) -> str:
        """Return the Markdown report."""
        text: str = self._rendered("to_markdown")
        return text
