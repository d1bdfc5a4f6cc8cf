"""Proof by training on a device that is here, in fresh processes under a cap."""

from __future__ import annotations

from memprof.documents.comparison import FitAnswer
from memprof.documents.fit import FitDevice
from memprof.documents.jobs import Outcome, Step, Trial
from memprof.documents.optimizer_spec import OptimizerSpec
from memprof.search.by_training import TrainedSearch
from memprof.search.request import FitRequest
from memprof.search.room import Room
from memprof.workers.launcher import Launcher, WorkerDiedError, outcome_of
from memprof.workers.progress import Purpose
from memprof.workers.teller import Teller


class Prover:
    """Trains what was predicted.

    Args:
        request: what is to be found.
        present: the value of the knob that the user trains with.
        launcher: starts the processes.
        teller: tells about the trials.

    Attributes:
        trained: trials so far.
    """

    def __init__(self, request: FitRequest, present: int, launcher: Launcher, teller: Teller) -> None:
        self._request = request
        self._present = present
        self._launcher = launcher
        self._teller = teller
        self.trained = 0

    def prove(
        self, device: FitDevice, optimizer: OptimizerSpec, predicted: FitAnswer | None, refused: tuple[int, ...]
    ) -> FitAnswer | None:
        """Return the largest value that was trained within the capacity, its successor shown not to fit.

        Args:
            device: where, one that is here.
            optimizer: with which.
            predicted: where the search begins; None where nothing could be predicted.
            refused: values that the workload does not take.

        Returns:
            None where nothing was predicted and no two values can be trained.
        """
        request = self._request
        trial = Trial(
            workload=request.workload,
            optimizer=optimizer,
            device=device.name,
            batch_size=request.batch_size,
            recipe=request.recipe,
        )
        room = Room(trial, request.vary, device.usable_bytes)
        if predicted is not None:
            return TrainedSearch(room, self._train, forecast=predicted, refused=refused).prove()
        label = f"{optimizer.text}  {request.vary.knob}={self._present}"
        known = {self._present: self._train(room.at(self._present, "fit"), "fit", label)}
        return TrainedSearch(room, self._train, known).prove()

    def _train(self, trial: Trial, purpose: Purpose, label: str) -> Outcome:
        self.trained += 1

        def on_step(step: Step) -> None:
            self._teller.tell(
                label, purpose, stage=step.stage, step=step.step, steps=step.steps, peak_bytes=step.peak_bytes
            )

        self._teller.begin(label, purpose)
        try:
            outcome = self._launcher.run(trial, on_step)
            assert isinstance(outcome, Outcome)
        except WorkerDiedError as death:
            outcome = outcome_of(death, trial.optimizer, trial.device)
            if trial.limit_bytes is not None:  # libraries that are refused memory may crash
                run = outcome.run.model_copy(update={"status": "oom"})
                outcome = outcome.model_copy(update={"run": run})
        self._teller.tell(label, purpose, stage="done", run=outcome.run)
        return outcome
