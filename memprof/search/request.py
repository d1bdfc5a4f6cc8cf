"""What `memprof fit` is asked."""

from __future__ import annotations

from dataclasses import dataclass

from memprof.documents.optimizer_spec import OptimizerSpec
from memprof.documents.recipe import Recipe
from memprof.documents.vary import Vary
from memprof.documents.workload_spec import WorkloadSpec


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """What is to be found.

    Attributes:
        workload: what is trained.
        optimizers: rows of the matrix.
        devices: columns, as `--device` takes them.
        vary: the knob.
        batch_size: where that is not the knob; and what its search begins with.
        recipe: how it is trained.
        budget: in place of the devices' memory, in bytes.
        margin: to leave free, a share or a size.
        confirm: prove by training what is predicted for devices that are here.
        command: the command line to record.
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
