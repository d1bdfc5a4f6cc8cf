"""The document of `memprof fit`: the largest value for each optimizer on each device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from memprof.documents.base import Saved
from memprof.documents.comparison import Environment, FitAnswer, WorkloadInfo
from memprof.documents.confidence import Document
from memprof.documents.recipe import Recipe
from memprof.documents.vary import Vary

if TYPE_CHECKING:
    import pandas as pd


class FitDevice(Document):
    """A device to fill.

    Attributes:
        name: `cpu`, `cuda:N`, or a simulated GPU's.
        simulated: it is not here, and was predicted for.
        capacity_bytes: what training can allocate, before the margin.
        usable_bytes: what the answers fill: the capacity without the margin.
        source: `device`: what is free of this machine's device; `catalog`: a GPU's memory beside the CUDA context;
            `budget`: what `--budget` says.
    """

    name: str
    simulated: bool
    capacity_bytes: int
    usable_bytes: int
    source: Literal["device", "catalog", "budget"]


class FitCell(Document):
    """One optimizer on one device.

    Attributes:
        optimizer: the spec.
        device: its name.
        answer: None where the optimizer cannot train the model, or it was not searched for.
        reason: why there is no answer.
        pending: the fit was interrupted before this cell was finished.
    """

    optimizer: str
    device: str
    answer: FitAnswer | None = None
    reason: str | None = None
    pending: bool = False

    @property
    def fits(self) -> bool:
        """Whether any value fits."""
        return self.answer is not None and self.answer.value != 0


class Evaluations(Document):
    """How many values were tried for the whole matrix: traced for predictions, and trained."""

    predicted: int = 0
    trained: int = 0


class FitReport(Saved):
    """The largest value of one knob, for optimizers and devices."""

    maker = "memprof fit --export-json"
    schema_: Literal["memprof.fit/1"] = Field(default="memprof.fit/1", alias="schema")
    environment: Environment
    workload: WorkloadInfo
    recipe: Recipe
    vary: Vary
    margin: str
    devices: list[FitDevice]
    cells: list[FitCell]
    evaluations: Evaluations
    notes: list[str] = Field(default=[])

    def cell(self, optimizer: str, device: str) -> FitCell:
        """Return the cell of an optimizer on a device."""
        return next(cell for cell in self.cells if (cell.optimizer, cell.device) == (optimizer, device))

    def to_frame(self) -> pd.DataFrame:
        """Return one row per cell; sizes are bytes."""
        frame: pd.DataFrame = self._rendered("to_frame")
        return frame

    def to_markdown(self, figure: str = "") -> str:
        """Return the Markdown report, with a figure of the matrix where its Markdown is given."""
        text: str = self._rendered("to_markdown", figure)
        return text
