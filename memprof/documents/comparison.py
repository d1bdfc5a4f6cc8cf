"""The comparison document, which is saved, reported and gated. Nothing here imports torch.

Sizes are whole numbers of bytes, and an absent figure is null, never 0 or -1. `Comparison.model_json_schema()` is the
published JSON Schema, which `memprof schema` prints.
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
    """The machine and the software with which the figures were made.

    Attributes:
        instruction_set: The instruction set that PyTorch's kernels use on the processor (`AVX2`); null in documents
            older than this field.
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


# What is known about the lengths of a workload's samples: the workload declares a `longest_batch`, which the search for
# the largest batch and model then uses; all samples have the same length; or neither.
Lengths = Literal["longest_batch", "fixed", "unknown"]


class WorkloadInfo(Document):
    """The workload that was trained: the MODEL argument, all its knobs, and how its inputs were made.

    Attributes:
        lengths: What is known about the lengths of the samples; null in documents older than this field.
        positions: The longest sample that the model takes; null if the model does not say.
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
    """The figures of one optimizer on the workload, or the reason why there are none.

    Attributes:
        timeline: The memory during the last step; null in documents older than this field.
        confidence: What a predicted run rests on; null for a measured run.
        validation: How far the prediction of a measured run is off; null if no prediction was asked for.
        allocator_history: What the allocator of a CUDA device recorded during a measured run; null otherwise.
        rank: If several ranks trained, the rank with the highest allocator peak. Every other figure of the run is that
            rank's, except those of the steps (the longest time of any rank, and the mean of all losses). Null for a
            single rank.
        ranks: All ranks in order; empty for a single rank.
        notes: Sentences that a reader of the figures must know.
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
        """The bytes that the optimizers of all ranks hold together; None if the run has no state."""
        if self.ranks:
            return sum(rank.state_bytes for rank in self.ranks)
        return self.state.bytes if self.state is not None else None


class Capacity(Document):
    """The memory that the fit columns fill: that of the device, or the one given with `--budget`."""

    bytes: int
    source: Literal["device", "budget"]


class Comparison(Saved):
    """A comparison of several optimizers on one workload, or on one training script.

    Attributes:
        workload: The workload that was trained; null for a script.
        script: The script that was run; null for a workload, and in documents older than this field.
        recipe: How the workload was trained; null for a script, which decides that itself.
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
        """The name of the workload, or of the script."""
        return self.workload.name if self.workload is not None else self.script.program if self.script else ""

    @property
    def subject(self) -> str:
        """What the user asked to train: the MODEL argument, or the script with its arguments."""
        return self.workload.model if self.workload is not None else self.script.command if self.script else ""

    @property
    def strategy(self) -> str | None:
        """The way in which ranks share the training: `single`, `ddp` or `fsdp`; None for a script on several ranks."""
        if self.recipe is not None:
            return self.recipe.strategy
        return "single" if self.world_size == 1 else None

    @property
    def world_size(self) -> int:
        """The number of ranks that share the training."""
        if self.recipe is not None:
            return self.recipe.world_size
        return (self.script and self.script.world_size) or 1

    def to_frame(self) -> pd.DataFrame:
        """Return a frame with one row for each run and the columns of `memprof compare --export-csv`, in bytes."""
        frame: pd.DataFrame = self._rendered("to_frame")
        return frame

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        text: str = self._rendered("to_markdown")
        return text

    def _repr_html_(self) -> str:
        text: str = self._rendered("to_html")
        return text
