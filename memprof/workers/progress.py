"""Progress messages from a running comparison, fit or advice to the caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

from memprof.documents.comparison import Comparison, Run
from memprof.documents.jobs import Purpose


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One progress message of a trial.

    Attributes:
        trial: The number of the trial, counted from 1.
        trials: The number of trials that are expected so far.
        label: The optimizer spec, and for a fit trial the value of the knob, e.g. `adam  batch_size=4`.
        purpose: `measure` makes a row of the table. `fit` and `confirm` look for the largest batch and model. `predict`
            fills many cells of a table; its steps are cells.
        stage: `start` (the worker was forked), `build` (it builds the model), `step` or `done`.
        step: The training step that is running, counted from 1.
        steps: The number of training steps.
        peak_bytes: The high-water mark of the process's memory so far, in bytes (on CUDA: the allocator's peak).
        phase: The phase that a script is in; empty for other trials.
        run: The finished run, when a trial is `done`.
    """

    trial: int
    trials: int
    label: str
    purpose: Purpose
    stage: Literal["start", "build", "step", "done"]
    step: int = 0
    steps: int = 0
    peak_bytes: int | None = None
    phase: str = ""
    run: Run | None = None


OnProgress = Callable[[Progress], None]
OnComparison = Callable[[Comparison], None]


class ProgressReporter:
    """Counts the trials and passes their progress messages on, one at a time even if several threads report.

    Args:
        on_progress: Called with each message; None if nobody listens.
    """

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self._lock = Lock()
        self._started = self._expected = 0

    def expect(self, trials: int) -> None:
        """Announce how many more trials are expected.

        Args:
            trials: The expected number, from which the real one may differ.
        """
        self._expected = self._started + trials

    def begin(self, label: str, purpose: Purpose) -> None:
        """Report that the next trial begins.

        Args:
            label: The label of the trial.
            purpose: The purpose of the trial.
        """
        self._started += 1
        self.report(label, purpose, stage="start")

    def report(self, label: str, purpose: Purpose, **details: Any) -> None:
        """Report the progress of the running trial.

        Args:
            label: The label of the trial.
            purpose: The purpose of the trial.
            details: The other attributes of `Progress`; `stage` is required.
        """
        if self._on_progress is None:
            return
        with self._lock:
            trials = max(self._started, self._expected)
            self._on_progress(Progress(trial=self._started, trials=trials, label=label, purpose=purpose, **details))
