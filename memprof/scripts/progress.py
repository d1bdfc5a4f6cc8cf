"""Reports the phase of a script often enough to show that it runs, and too seldom to slow it down."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from memprof.documents.jobs import Step

_SECONDS_BETWEEN = 0.3


class PhaseProgress:
    """Sends a message when a phase begins, unless the last message was sent less than 0.3 seconds before.

    Args:
        emit: The function that takes the messages.
        steps: The number of training steps to run; None if it is not known.
        peak_bytes: A function that returns the highest memory use so far, in bytes.
    """

    def __init__(self, emit: Callable[[Any], None], steps: int | None, peak_bytes: Callable[[], int]) -> None:
        self._emit = emit
        self._steps = steps or 0
        self._peak_bytes = peak_bytes
        self._next = 0.0

    def phase_begins(self, step: int, phase: str) -> None:
        """Report that a phase begins.

        Args:
            step: The training step that the phase belongs to; 0 before the first.
            phase: The name of the phase.
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
