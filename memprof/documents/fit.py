"""The document of `memprof fit`: the largest value of a knob for each optimizer on each device."""

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
    """A device whose memory is to be filled.

    Attributes:
        name: `cpu`, `cuda:N`, or the name of a simulated GPU.
        simulated: Whether this machine does not have the device, so that its answers are predicted.
        capacity_bytes: The memory that training can allocate, before the margin is taken off.
        usable_bytes: The memory that the answers fill: the capacity without the margin.
        source: Where the capacity comes from. `device`: the free memory of this machine's device. `catalog`: the memory
            of a GPU without its CUDA context. `budget`: the value of `--budget`.
    """

    name: str
    simulated: bool
    capacity_bytes: int
    usable_bytes: int
    source: Literal["device", "catalog", "budget"]


class FitCell(Document):
    """The answer for one optimizer on one device.

    Attributes:
        optimizer: The optimizer spec.
        device: The name of the device.
        answer: The answer; None if the optimizer cannot train the model, or if the search did not reach this cell.
        reason: The reason why there is no answer.
        pending: Whether the fit was interrupted before this cell was finished.
    """

    optimizer: str
    device: str
    answer: FitAnswer | None = None
    reason: str | None = None
    pending: bool = False

    @property
    def fits(self) -> bool:
        """Whether at least one value fits."""
        return self.answer is not None and self.answer.value != 0


class Evaluations(Document):
    """How many values were tried for the whole matrix.

    Attributes:
        predicted: The number of values that were traced for predictions.
        trained: The number of values that were trained.
    """

    predicted: int = 0
    trained: int = 0


class FitReport(Saved):
    """The largest value of one knob, for each optimizer on each device.

    Attributes:
        environment: The machine and the software versions.
        workload: The workload that is trained.
        recipe: The training recipe.
        vary: The knob and the values that may be tried.
        margin: The memory that is left free: a share (`5%`) or a size (`1GiB`).
        devices: The columns of the matrix.
        cells: The cells of the matrix.
        evaluations: How many values were tried.
        notes: What a reader must know about the whole matrix.
    """

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
        """Return the cell of an optimizer spec and a device name."""
        return next(cell for cell in self.cells if (cell.optimizer, cell.device) == (optimizer, device))

    def to_frame(self) -> pd.DataFrame:
        """Return a data frame with one row per cell; sizes are in bytes."""
        frame: pd.DataFrame = self._rendered("to_frame")
        return frame

    def to_markdown(self, figure: str = "") -> str:
        """Return the report as Markdown.

        Args:
            figure: The Markdown that shows the figure of the matrix; without it, the report has no figure.
        """
        text: str = self._rendered("to_markdown", figure)
        return text
