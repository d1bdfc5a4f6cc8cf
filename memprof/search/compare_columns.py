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
from memprof.search.by_training import Room, RunTrial, TrainedSearch
from memprof.search.matrix import Matrix, Place, Question


@dataclass(frozen=True)
class FitColumns:
    """What is to be found beside the runs of a comparison.

    Attributes:
        workload: what is trained.
        found: what is known of it and of the device.
        batch_size: of the runs.
        recipe: of the runs.
        capacity_bytes: what is filled.
    """

    workload: WorkloadSpec
    found: Findings
    batch_size: int
    recipe: Recipe
    capacity_bytes: int

    @property
    def knobs(self) -> dict[str, tuple[str, int]]:
        """The columns: the knob that each varies, and its value in the runs."""
        knobs = {"batch_size": (BATCH, self.batch_size)}
        scale = self.found.scale
        if scale is not None and isinstance(self.found.knobs.get(scale), int):
            knobs["model"] = (scale, self.found.knobs[scale])
        return knobs

    @property
    def longest(self) -> WorkloadSpec:
        """The workload with the longest batches that it declares."""
        return self.workload.model_copy(update={"longest": True})

    def trials(self, confirm: bool) -> int:
        """Return how many trials each optimizer takes on a device that is here; proofs may take more."""
        return (3 if confirm else 1) * len(self.knobs) + (self.found.lengths == "longest_batch")

    def train(self, optimizer: OptimizerSpec, measured: Outcome, run_trial: RunTrial, confirm: bool) -> Fit:
        """Return the answers by training on a device that is here.

        Args:
            optimizer: with which.
            measured: the outcome of its run; a workload that declares longer batches is trained anew with those.
            run_trial: runs a trial in a fresh process.
            confirm: train the answers and their successors too.
        """
        trial = Trial(
            workload=self.longest,
            optimizer=optimizer,
            device=self.found.device.name,
            batch_size=self.batch_size,
            recipe=self.recipe,
        )
        if self.found.lengths == "longest_batch":
            present = Room(trial, Vary(), self.capacity_bytes).at(self.batch_size, "fit")
            measured = run_trial(present, "fit", f"{optimizer.text}  longest batch")
        answers: dict[str, FitAnswer | None] = {}
        for name, (knob, value) in self.knobs.items():
            search = TrainedSearch(Room(trial, Vary(knob=knob), self.capacity_bytes), run_trial, {value: measured})
            answers[name] = search.prove() if confirm else search.extrapolate()
        return Fit(**answers)

    def questions(self, optimizers: Sequence[OptimizerSpec]) -> list[Question]:
        """Return what is to be predicted, the largest model first: it takes longest."""
        place = Place(self.found.device.name, self.capacity_bytes, "")
        return [
            Question(
                workload=self.longest,
                optimizers=optimizers,
                places=[place],
                recipe=self.recipe,
                batch_size=self.batch_size,
                vary=Vary(knob=knob),
                present=value,
            )
            for knob, value in reversed(self.knobs.values())
        ]

    def filled(self, run: Run, matrices: Sequence[Matrix]) -> Run:
        """Return a run with what is found so far, or why nothing is, in matrices that go by the questions."""
        key = self.found.device.name, run.optimizer.spec
        found = {name: matrix.found.get(key) for name, matrix in zip(reversed(self.knobs), matrices, strict=True)}
        answers = {name: answer for name, answer in found.items() if isinstance(answer, FitAnswer)}
        lost = [f"No largest {self.knobs[name][0]}: {why}" for name, why in found.items() if isinstance(why, str)]
        return run.model_copy(update={"fit": Fit(**answers), "notes": [*run.notes, *lost]})
