"""Confirms predicted answers by training on a device of this machine, in fresh processes with a memory limit."""

from __future__ import annotations

from memprof.documents.comparison import FitAnswer
from memprof.documents.fit import FitDevice
from memprof.documents.jobs import Outcome, Purpose, Step, Trial
from memprof.documents.optimizer_spec import OptimizerSpec
from memprof.search.by_training import SearchSpace, TrainedSearch
from memprof.search.request import FitRequest
from memprof.workers.death import WorkerDiedError, outcome_of
from memprof.workers.launcher import Launcher
from memprof.workers.progress import ProgressReporter


class Confirmer:
    """Confirms the answers of `memprof fit` by training.

    Args:
        request: What `memprof fit` was asked to find.
        present: The value of the knob that the user trains with, or the workload's default.
        launcher: Starts the worker processes.
        reporter: Reports the progress of the trials.

    Attributes:
        trained: The number of trials so far.
    """

    def __init__(self, request: FitRequest, present: int, launcher: Launcher, reporter: ProgressReporter) -> None:
        self._request = request
        self._present = present
        self._launcher = launcher
        self._reporter = reporter
        self.trained = 0

    def confirm(
        self, device: FitDevice, optimizer: OptimizerSpec, predicted: FitAnswer | None, refused: tuple[int, ...]
    ) -> FitAnswer | None:
        """Find the largest value that trains within the capacity while the next value does not fit.

        Args:
            device: The device to train on; it belongs to this machine.
            optimizer: The optimizer to train with.
            predicted: The predicted answer, where the search begins; None if nothing could be predicted.
            refused: The values that the workload is known not to take.

        Returns:
            The confirmed answer; None if nothing was predicted and no two values can be trained.
        """
        request = self._request
        trial = Trial(
            workload=request.workload,
            optimizer=optimizer,
            device=device.name,
            batch_size=request.batch_size,
            recipe=request.recipe,
        )
        space = SearchSpace(trial, request.vary, device.usable_bytes)
        if predicted is not None:
            return TrainedSearch(space, self._train, forecast=predicted, refused=refused).confirm()
        label = f"{optimizer.text}  {request.vary.knob}={self._present}"
        known = {self._present: self._train(space.at(self._present, "fit"), "fit", label)}
        return TrainedSearch(space, self._train, known).confirm()

    def _train(self, trial: Trial, purpose: Purpose, label: str) -> Outcome:
        self.trained += 1

        def on_step(step: Step) -> None:
            self._reporter.report(
                label, purpose, stage=step.stage, step=step.step, steps=step.steps, peak_bytes=step.peak_bytes
            )

        self._reporter.begin(label, purpose)
        try:
            outcome = self._launcher.run(trial, on_step)
            assert isinstance(outcome, Outcome)
        except WorkerDiedError as death:
            outcome = outcome_of(death, trial.optimizer, trial.device)
            if trial.limit_bytes is not None:  # a library may crash when the limit refuses it memory
                run = outcome.run.model_copy(update={"status": "oom"})
                outcome = outcome.model_copy(update={"run": run})
        self._reporter.report(label, purpose, stage="done", run=outcome.run)
        return outcome
