"""The protocol of a training, the same for every source of events: steps, phases, and who holds what.

Real steps, fake steps, callbacks in somebody else's training and scripts differ in who drives them and in where their
events come from. When a phase begins, what is labelled at its end, and in which order, is decided here alone:

| when | marks |
|---|---|
| the followed step begins | buffers, state, gradients, parameters; batch, loss and scaler of the step before |
| `batch` ends | the batch, as inputs |
| `backward` ends | gradients |
| `optimizer` ends | state: what the optimizer holds |
| any phase ends, with the step in the backward pass | state as well |
| a parameter is about to step in the backward pass | gradients |

The order matters: of two marks on one block the first to name it counts (`memprof.trace.attribution`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import Tensor, nn

from memprof.trace.events import Mark
from memprof.training.labels import Labeller, label_tensors


class Held(Protocol):
    """What a training loop holds from one step to the next; `memprof.training.step.TrainingStep` is one."""

    batch: Any
    loss: Tensor | None

    def scaler_tensors(self) -> Iterable[Tensor]:
        """Return what the gradient scaler keeps on the device."""


class Session:
    """A training as it goes from phase to phase.

    Args:
        mark: puts a mark between the last event and the next.
        begin: told of every phase that begins: the number of the step, and the phase.
        step_in_backward: every parameter steps as soon as its gradient is complete.
        aside: a context for what is done here, where that could be mistaken for a part of the training.

    Attributes:
        number: of the step, from 1; 0 while the model is built.
        phase: that runs.
        following: who holds what is marked from now on.
    """

    def __init__(
        self,
        mark: Callable[[Mark], None],
        begin: Callable[[int, str], None],
        *,
        step_in_backward: bool = False,
        aside: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._mark = mark
        self._begin = begin
        self._step_in_backward = step_in_backward
        self._aside = aside
        self.number = 0
        self.phase = "build"
        self.following = False

    def built(self, labels: Labeller, mark_states: Callable[[], None], held: Held | None = None) -> None:
        """The model and the optimizer are there.

        Args:
            labels: of the model.
            mark_states: marks what the optimizer holds, or each of several.
            held: what the loop holds; None where that is not known.
        """
        self._labels = labels
        self._mark_states = mark_states
        self._held = held

    @property
    def place(self) -> str:
        """Where the training is, as it reads in a sentence: `the forward phase of step 2`."""
        return f"the {self.phase} phase of step {self.number}" if self.number else "the build"

    def begin_phase(self, phase: str) -> None:
        """A phase begins, and the one before it ends."""
        self.end_phase()
        self.phase = phase
        self._begin(self.number, phase)

    def end_phase(self) -> None:
        """The phase ends: what it made gets its labels."""
        if not self.following or self.phase == "build":
            return
        with self._aside():
            if self.phase == "batch" and self._held is not None:
                self.mark_inputs(self._held.batch)
            elif self.phase == "backward":
                self._mark(self._labels.gradients())
            if self.phase == "optimizer" or self._step_in_backward:
                self._mark_states()

    def follow(self) -> None:
        """The followed step begins: everything that lives gets its label, and from now on what is made."""
        self.following = True
        with self._aside():
            self._mark(self._labels.buffers())
            self._mark_states()
            self._mark(self._labels.gradients())
            self._mark(self._labels.parameters())
            if self._held is not None:
                self.mark_inputs(self._held.batch)
                self._mark(label_tensors("activations", self._held.loss))
                self._mark(label_tensors("buffers", list(self._held.scaler_tensors())))

    def mark_inputs(self, batch: Any) -> None:
        """Label a batch."""
        self._mark(label_tensors("inputs", batch))

    def before_own_step(self, parameter: nn.Parameter) -> None:
        """A parameter is about to step in the backward pass: its gradient is complete."""
        if self.following:
            with self._aside():
                self._mark(self._labels.gradients())
