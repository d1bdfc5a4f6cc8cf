"""The protocol of a training: its steps, its phases, and what its tensors hold. Every source of events follows it.

Real steps, fake steps, callbacks in somebody else's training and scripts differ in who drives them and in where their
events come from. Only this module decides when a phase begins, what is labelled at its end, and in which order:

| when | marks |
|---|---|
| the followed step begins | buffers, state, gradients, parameters; batch, loss and scaler of the step before |
| `batch` ends | the batch, as inputs |
| `backward` ends | gradients |
| `optimizer` ends | the optimizer's state |
| any phase ends, with the step in the backward pass | the optimizer's state as well |
| a parameter is about to be stepped in the backward pass | gradients |

The order matters, because the first mark that names a block decides its label (`memprof.trace.attribution`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import Tensor, nn

from memprof.trace.events import Mark
from memprof.training.labels import Labeller, label_tensors


class Held(Protocol):
    """What a training loop holds from one step to the next, as `memprof.training.step.TrainingStep` does.

    Attributes:
        batch: The last batch, a nest of tensors.
        loss: The last loss; None before the first forward pass.
    """

    batch: Any
    loss: Tensor | None

    def scaler_tensors(self) -> Iterable[Tensor]:
        """Return the tensors that the gradient scaler keeps on the device."""


class Session:
    """Follows a training from phase to phase, and labels what its tensors hold.

    Args:
        mark: Puts a mark between the last event and the next.
        begin: Is called with the number of the step and the name of the phase whenever a phase begins.
        step_in_backward: Whether every parameter is stepped as soon as its gradient is complete.
        aside: Returns a context for the work of the session itself, where that could be mistaken for training.

    Attributes:
        number: The number of the step, from 1; 0 while the model is built.
        phase: The phase that runs.
        following: Whether tensors are labelled.
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

    def built(
        self, labels: Callable[[], Labeller], mark_states: Callable[[Labeller], None], held: Held | None = None
    ) -> None:
        """Take in the model and the optimizer, once they have been built.

        Args:
            labels: Returns the labeller of the model as it is now.
            mark_states: Marks the state of the optimizer, or of each of several.
            held: The loop that holds the batch and the loss; None if it is not known.
        """
        self._labels = labels
        self._mark_states = mark_states
        self._held = held

    @property
    def place(self) -> str:
        """The place of the training in words, as in `the forward phase of step 2`."""
        return f"the {self.phase} phase of step {self.number}" if self.number else "the build"

    def begin_phase(self, phase: str) -> None:
        """End the phase that runs and begin another.

        Args:
            phase: The name of the phase that begins.
        """
        self.end_phase()
        self.phase = phase
        self._begin(self.number, phase)

    def end_phase(self) -> None:
        """End the phase that runs, and label what it made."""
        if not self.following or self.phase == "build":
            return
        with self._aside():
            if self.phase == "batch" and self._held is not None:
                self.mark_inputs(self._held.batch)
            elif self.phase == "backward":
                self._mark(self._labels().gradients())
            if self.phase == "optimizer" or self._step_in_backward:
                self._mark_states(self._labels())

    def follow(self) -> None:
        """Label everything that lives when a step begins, and from now on label what each phase makes."""
        self.following = True
        with self._aside():
            labels = self._labels()
            self._mark(labels.buffers())
            self._mark_states(labels)
            self._mark(labels.gradients())
            self._mark(labels.parameters())
            if self._held is not None:
                self.mark_inputs(self._held.batch)
                self._mark(label_tensors("activations", self._held.loss))
                self._mark(label_tensors("buffers", list(self._held.scaler_tensors())))

    def mark_inputs(self, batch: Any) -> None:
        """Label a batch.

        Args:
            batch: A nest of tensors.
        """
        self._mark(label_tensors("inputs", batch))

    def before_own_step(self, parameter: nn.Parameter) -> None:
        """Label the gradients when a parameter is about to be stepped in the backward pass.

        Args:
            parameter: The parameter, whose gradient is complete.
        """
        if self.following:
            with self._aside():
                self._mark(self._labels().gradients())
