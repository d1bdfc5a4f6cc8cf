"""Tells where a script is, as its phases change: often enough to look alive, and too seldom to slow it down."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from memprof.documents.jobs import Step

_SECONDS_BETWEEN = 0.3


class PhaseProgress:
    """Sends a message when a phase begins, but no sooner than a moment after the last one.

    Args:
        emit: takes the messages.
        steps: how many training steps are wanted; None if that is not known.
        peak_bytes: returns the highest memory use so far.
    """

    def __init__(self, emit: Callable[[Any], None], steps: int | None, peak_bytes: Callable[[], int]) -> None:
        self._emit = emit
        self._steps = steps or 0
        self._peak_bytes = peak_bytes
        self._next = 0.0

    def phase_begins(self, step: int, phase: str) -> None:
        """A phase begins.

        Args:
            step: the training step that it belongs to; 0 before the first.
            phase: its name.
        """
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _SECONDS_BETWEEN
        shown = phase if step or phase != "build" else ""
        self._emit(
            Step(
                stage="step" if step else "build",
                step=step,
                steps=self._steps,
                peak_bytes=self._peak_bytes(),
                phase=shown,
            )
        )
