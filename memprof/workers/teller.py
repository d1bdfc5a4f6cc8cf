"""Progress of work that goes on in several processes at once."""

from __future__ import annotations

from threading import Lock
from typing import Any

from memprof.workers.progress import OnProgress, Progress
from memprof.documents.jobs import Purpose


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
