"""What a running comparison tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

from memprof.documents.comparison import Comparison, Run
from memprof.documents.jobs import Purpose


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One sign of life of a trial.

    Attributes:
        trial: which trial, counted from 1, of `trials` known so far.
        label: the optimizer spec, and for a fit trial the knob value, e.g. `adam  batch_size=4`.
        purpose: `measure` makes a row of the table; `fit` and `confirm` serve the largest batch and model; `predict`
            fills many cells of a table, and its steps are cells.
        stage: `start` (worker forked), `build` (model), `step`, `done`.
        step: the training step that is running, from 1, of `steps`.
        peak_bytes: the process's memory high-water mark so far (CUDA: the allocator's peak).
        run: the finished run, for `done` of a `measure` trial.
    """

    trial: int
    trials: int
    label: str
    purpose: Purpose
    stage: Literal["start", "build", "step", "done"]
    step: int = 0
    steps: int = 0
    peak_bytes: int | None = None
    run: Run | None = None


OnProgress = Callable[[Progress], None]
OnComparison = Callable[[Comparison], None]


class Teller:
    """Numbers the trials, and tells whoever watches, one message at a time.

    Args:
        on_progress: is told; None where nobody watches.
    """

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self._lock = Lock()
        self._started = self._expected = 0

    def expect(self, trials: int) -> None:
        """Count on so many more trials, so that progress knows its end; there may be more or fewer."""
        self._expected = self._started + trials

    def begin(self, label: str, purpose: Purpose) -> None:
        """The next trial begins."""
        self._started += 1
        self.tell(label, purpose, stage="start")

    def tell(self, label: str, purpose: Purpose, **details: Any) -> None:
        """Tell about the trial that runs; the details are `memprof.workers.progress.Progress`'s."""
        if self._on_progress is None:
            return
        with self._lock:
            trials = max(self._started, self._expected)
            self._on_progress(Progress(trial=self._started, trials=trials, label=label, purpose=purpose, **details))
