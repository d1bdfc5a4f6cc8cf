"""Decides which optimizer steps make up one training step when a script has several optimizers.

The optimizer whose first step came last ends each training step. A GAN that steps its discriminator and then its
generator ends a training step with the generator's step. Everything before the first step of that optimizer belongs to
the first training step. Only the rest of the run shows which optimizer it is, so phases are numbered by the count of
optimizer steps (slots) and renumbered at the end.
"""

from __future__ import annotations

from collections.abc import Iterable

from memprof.trace.events import Entry, PhaseMark


class Cycles:
    """Counts training steps from the order in which optimizers step.

    Attributes:
        slot: The number of the next optimizer step, counted from 1; 0 stands for the build.
    """

    def __init__(self) -> None:
        self.slot = 0
        self._stepped: list[int] = []  # the optimizer of each step, numbered in the order of first steps
        self._numbers: dict[int, int] = {}

    def begin(self) -> None:
        """Note that the first training step begins. Further calls change nothing."""
        self.slot = max(self.slot, 1)

    def stepped(self, optimizer: int) -> bool:
        """Note a step of an optimizer and return whether a training step ends with it.

        Args:
            optimizer: The `id()` of the optimizer.
        """
        self._stepped.append(self._numbers.setdefault(optimizer, len(self._numbers)))
        self.slot = len(self._stepped) + 1
        return self._stepped[-1] == len(self._numbers) - 1

    @property
    def count(self) -> int:
        """The number of training steps that have ended."""
        return self._stepped.count(len(self._numbers) - 1) if self._numbers else 0

    @property
    def optimizers(self) -> int:
        """The number of optimizers that have stepped."""
        return len(self._numbers)

    def renumbered(self, entries: Iterable[Entry]) -> list[Entry]:
        """Return the stream with the slots in its phase marks replaced by the numbers of training steps."""
        steps = self.steps_of_slots()
        return [
            PhaseMark(steps[entry.step], entry.phase) if isinstance(entry, PhaseMark) else entry for entry in entries
        ]

    def steps_of_slots(self) -> list[int]:
        """Return the training step that each slot belongs to, beginning with slot 0, the build."""
        last = len(self._numbers) - 1
        steps, number = [0], 1
        for optimizer in self._stepped:
            steps.append(number)
            number += optimizer == last
        return [*steps, number]
