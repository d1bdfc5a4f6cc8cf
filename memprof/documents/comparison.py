"""The comparison document: what is saved, reported and gated. Nothing here imports torch.

Sizes are `int` bytes; an absent figure is null, never 0 or -1. `Comparison.model_json_schema()` is the published
JSON Schema (`memprof schema` prints it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from memprof.documents.base import Saved
from memprof.documents.confidence import AllocatorHistory, Confidence, Document, Validation
from memprof.documents.recipe import Recipe
from memprof.documents.run_figures import (
    CATEGORIES,
    Breakdown,
    Fit,
    FitAnswer,
    FitPoint,
    OptimizerInfo,
    Parameters,
    Peak,
    PhasePeak,
    Rank,
    State,
    Steps,
)
from memprof.documents.script import ScriptInfo
from memprof.documents.timeline import Timeline

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CATEGORIES",
    "SCHEMA",
    "Breakdown",
    "Capacity",
    "Comparison",
    "Environment",
    "Fit",
    "FitAnswer",
    "FitPoint",
    "Lengths",
    "OptimizerInfo",
    "Parameters",
    "Peak",
    "PhasePeak",
    "Rank",
    "Run",
    "ScriptInfo",
    "State",
    "Steps",
    "WorkloadInfo",
]

SCHEMA: Literal["memprof.comparison/1"] = "memprof.comparison/1"


class Environment(Document):
    """Where the figures were made.

    Attributes:
        instruction_set: that PyTorch's kernels use on the processor (`AVX2`); null in documents from before it was
            there.
    """

    memprof: str
    python: str
    platform: str
    processor: str
    instruction_set: str | None = None
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
    """Several optimizers on one workload, or on one training script.

    Attributes:
        workload: what was trained; null for a script.
        script: what was run; null for a workload, and in documents from before it was there.
        recipe: how a workload was trained; null for a script, which has its own.
    """

    maker = "memprof compare --export-json"
    schema_: Literal["memprof.comparison/1"] = Field(default=SCHEMA, alias="schema")
    environment: Environment
    workload: WorkloadInfo | None = None
    script: ScriptInfo | None = None
    recipe: Recipe | None = None
    capacity: Capacity
    reference: str | None = None
    runs: list[Run]

    @model_validator(mode="after")
    def _check_subject(self) -> Comparison:
        if (self.workload is None) == (self.script is None):
            raise ValueError("a comparison is of a workload or of a script")
        if (self.workload is None) != (self.recipe is None):
            raise ValueError("a workload is trained by a recipe, and a script has its own")
        return self

    @property
    def name(self) -> str:
        """What was trained: the workload's name, or the script's."""
        return self.workload.name if self.workload is not None else self.script.program if self.script else ""

    @property
    def subject(self) -> str:
        """What was asked to be trained: the MODEL argument, or the script with its arguments."""
        return self.workload.model if self.workload is not None else self.script.command if self.script else ""

    @property
    def strategy(self) -> str:
        """How ranks share the training."""
        return self.recipe.strategy if self.recipe is not None else "single"

    @property
    def world_size(self) -> int:
        """Over how many ranks it goes."""
        return self.recipe.world_size if self.recipe is not None else 1

    def to_frame(self) -> pd.DataFrame:
        """Return one row per run with the columns of `memprof compare --export-csv`; sizes are bytes."""
        frame: pd.DataFrame = self._rendered("to_frame")
        return frame

    def to_markdown(self) -> str:
        """Return the Markdown report."""
        text: str = self._rendered("to_markdown")
        return text

    def _repr_html_(self) -> str:
        text: str = self._rendered("to_html")
        return text
