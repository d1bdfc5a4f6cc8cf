"""The arguments of `memprof fit`."""

from __future__ import annotations

from dataclasses import dataclass

from memprof.documents.optimizer_spec import OptimizerSpec
from memprof.documents.recipe import Recipe
from memprof.documents.vary import Vary
from memprof.documents.workload_spec import WorkloadSpec


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """What `memprof fit` is asked to find.

    Attributes:
        workload: The workload that is trained.
        optimizers: The rows of the matrix.
        devices: The columns of the matrix, named as `--device` takes them.
        vary: The knob and the values that may be tried.
        batch_size: The batch size. Where the batch size is the knob, the search begins with this value.
        recipe: The training recipe.
        budget: The memory to fill in place of each device's own, in bytes.
        margin: The memory to leave free: a share (`5%`) or a size (`1GiB`).
        confirm: Whether to confirm by training what is predicted for devices of this machine.
        command: The command line to record in the report.
    """

    workload: WorkloadSpec
    optimizers: list[OptimizerSpec]
    devices: list[str]
    vary: Vary
    batch_size: int
    recipe: Recipe
    budget: int | None = None
    margin: str = "0%"
    confirm: bool = True
    command: str | None = None
