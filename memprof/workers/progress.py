"""What a running comparison tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

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
