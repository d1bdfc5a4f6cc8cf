"""Which optimizer steps make up one training step, where a script has several optimizers.

A training step ends when the optimizer steps that was the last to step for the first time: of a GAN, which steps its
discriminator and then its generator, that is the generator's. What came before that optimizer's first step is the first
training step. Which one it is shows only as the script goes on, so phases are numbered by the count of optimizer steps
(slots), and renumbered at the end.
"""

from __future__ import annotations

from collections.abc import Iterable

from memprof.trace.events import Entry, PhaseMark


class Cycles:
    """Counts training steps from the order in which optimizers step.

    Attributes:
        slot: which optimizer step the script is before, from 1; 0 is the build.
    """

    def __init__(self) -> None:
        self.slot = 0
        self._stepped: list[int] = []  # which optimizer made each step, as a number in the order of first steps
        self._numbers: dict[int, int] = {}

    def begin(self) -> None:
        """The first training step begins; further calls change nothing."""
        self.slot = max(self.slot, 1)

    def stepped(self, optimizer: int) -> bool:
        """Note a step of an optimizer, known by its identity, and return whether a training step ends with it."""
        self._stepped.append(self._numbers.setdefault(optimizer, len(self._numbers)))
        self.slot = len(self._stepped) + 1
        return self._stepped[-1] == len(self._numbers) - 1

    @property
    def count(self) -> int:
        """How many training steps have ended."""
        return self._stepped.count(len(self._numbers) - 1) if self._numbers else 0

    @property
    def optimizers(self) -> int:
        """How many optimizers have stepped."""
        return len(self._numbers)

    def renumbered(self, entries: Iterable[Entry]) -> list[Entry]:
        """Return a stream with the numbers of training steps in its phase marks in place of slots."""
        steps = self.steps_of_slots()
        return [
            PhaseMark(steps[entry.step], entry.phase) if isinstance(entry, PhaseMark) else entry for entry in entries
        ]

    def steps_of_slots(self) -> list[int]:
        """Return for each slot, the build's included, the training step that it belongs to."""
        last = len(self._numbers) - 1
        steps, number = [0], 1
        for optimizer in self._stepped:
            steps.append(number)
            number += optimizer == last
        return [*steps, number]
