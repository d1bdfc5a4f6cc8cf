"""The fit columns of a comparison: the largest batch and the largest model of each optimizer on one device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memprof.documents.comparison import Fit, FitAnswer, Run
from memprof.documents.jobs import Findings, Outcome, Trial
from memprof.documents.optimizer_spec import OptimizerSpec
from memprof.documents.recipe import Recipe
from memprof.documents.vary import BATCH, Vary
from memprof.documents.workload_spec import WorkloadSpec
from memprof.search.by_training import RunTrial, SearchSpace, TrainedSearch
from memprof.search.matrix import MatrixRequest, MatrixResult, SearchDevice


@dataclass(frozen=True)
class FitColumns:
    """Fills the fit columns of a comparison, next to the figures of its runs.

    Attributes:
        workload: The workload that is trained.
        found: What the first job found out about the workload and the device.
        batch_size: The batch size of the runs.
        recipe: The training recipe of the runs.
        capacity_bytes: The memory to fill, in bytes.
    """

    workload: WorkloadSpec
    found: Findings
    batch_size: int
    recipe: Recipe
    capacity_bytes: int

    @property
    def knobs(self) -> dict[str, tuple[str, int]]:
        """The knob that each column varies and its value in the runs, by the column's name."""
        knobs = {"batch_size": (BATCH, self.batch_size)}
        scale = self.found.scale
        if scale is not None and isinstance(self.found.knobs.get(scale), int):
            knobs["model"] = (scale, self.found.knobs[scale])
        return knobs

    @property
    def longest(self) -> WorkloadSpec:
        """The workload with the longest batches that it declares, where it declares any."""
        return self.workload.model_copy(update={"longest": True})

    def trials(self, confirm: bool) -> int:
        """Return how many trials each optimizer takes on a device of this machine.

        Args:
            confirm: Whether the answers are confirmed by training, which may take more trials than this.
        """
        return (3 if confirm else 1) * len(self.knobs) + (self.found.lengths == "longest_batch")

    def train(self, optimizer: OptimizerSpec, measured: Outcome, run_trial: RunTrial, confirm: bool) -> Fit:
        """Find the answers of one optimizer by training on a device of this machine.

        Args:
            optimizer: The optimizer to train with.
            measured: The outcome of its run in the comparison. A workload that declares longer batches is trained
                again with those.
            run_trial: Runs a trial in a fresh process.
            confirm: Whether to train each answer and the value after it, instead of extrapolating.
        """
        trial = Trial(
            workload=self.longest,
            optimizer=optimizer,
            device=self.found.device.name,
            batch_size=self.batch_size,
            recipe=self.recipe,
        )
        if self.found.lengths == "longest_batch":
            present = SearchSpace(trial, Vary(), self.capacity_bytes).at(self.batch_size, "fit")
            measured = run_trial(present, "fit", f"{optimizer.text}  longest batch")
        answers: dict[str, FitAnswer | None] = {}
        for name, (knob, value) in self.knobs.items():
            search = TrainedSearch(
                SearchSpace(trial, Vary(knob=knob), self.capacity_bytes), run_trial, {value: measured}
            )
            answers[name] = search.confirm() if confirm else search.extrapolate()
        return Fit(**answers)

    def requests(self, optimizers: Sequence[OptimizerSpec]) -> list[MatrixRequest]:
        """Return the matrices to predict, the largest model first because it takes the longest.

        Args:
            optimizers: The rows of each matrix; the device of the comparison is the only column.
        """
        device = SearchDevice(self.found.device.name, self.capacity_bytes, "")
        return [
            MatrixRequest(
                workload=self.longest,
                optimizers=optimizers,
                devices=[device],
                recipe=self.recipe,
                batch_size=self.batch_size,
                vary=Vary(knob=knob),
                present=value,
            )
            for knob, value in reversed(self.knobs.values())
        ]

    def filled(self, run: Run, matrices: Sequence[MatrixResult]) -> Run:
        """Return a run with the answers found so far, and a note for each answer that could not be found.

        Args:
            run: The run of one optimizer.
            matrices: The results of `requests`, in the same order.
        """
        key = self.found.device.name, run.optimizer.spec
        found = {name: matrix.found.get(key) for name, matrix in zip(reversed(self.knobs), matrices, strict=True)}
        answers = {name: answer for name, answer in found.items() if isinstance(answer, FitAnswer)}
        lost = [f"No largest {self.knobs[name][0]}: {why}" for name, why in found.items() if isinstance(why, str)]
        return run.model_copy(update={"fit": Fit(**answers), "notes": [*run.notes, *lost]})
