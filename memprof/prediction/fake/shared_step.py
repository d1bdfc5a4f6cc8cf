"""Trains several optimizers on one model. Each steps on the same gradients, and none sees the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from memprof.errors import MemprofError
from memprof.prediction.fake.dispatch import FakeOperators
from memprof.user_code import is_out_of_memory, raised


class Contender:
    """One of the optimizers that train together.

    Attributes:
        number: Its number, under which the log keeps its allocations.
        optimizers: The optimizer under the key None; with the step in the backward pass, one for each parameter.
        operators: The names of the operators that its steps ran.
        assumed: The reads of unknown values in its steps, as in `Reads.assumed`.
        failure: Why it stopped; None if it has not.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.optimizers: dict[nn.Parameter | None, Any] = {}
        self.operators: set[str] = set()
        self.assumed: set[tuple[str, str]] = set()
        self.failure: str | None = None

    @property
    def one(self) -> Any:
        """The optimizer, or one of them."""
        return next(iter(self.optimizers.values()))

    def attempt(self, mode: FakeOperators, action: Callable[[], Any], what: str) -> None:
        """Run an action of this optimizer. An exception ends this optimizer and no other.

        Args:
            mode: Runs the operators.
            action: The action.
            what: The place of the training in words, for the sentence about a failure.
        """
        outside, mode.operators_of = mode.operators_of, {}
        assumed, mode.reads.assumed = mode.reads.assumed, self.assumed
        phase, mode.phase = mode.phase, "optimizer"  # also if the step is taken in the backward pass
        try:
            with mode.log.owned_by(self.number):
                action()
        except MemprofError as error:
            self.failure = str(error)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self.failure = raised(what, error)
        finally:
            self.operators |= {name for names in mode.operators_of.values() for name in names}
            mode.operators_of, mode.phase, mode.reads.assumed = outside, phase, assumed


class SharedStep:
    """All optimizers in the place of the one that a training step steps.

    Args:
        contenders: The optimizers.
        parameter: The parameter of these optimizers with the step in the backward pass; otherwise None.
        mode: Runs the operators.
        place: Returns the place of the training in words, for the sentence about a failure.
    """

    def __init__(
        self,
        contenders: list[Contender],
        parameter: nn.Parameter | None,
        mode: FakeOperators,
        place: Callable[[], str],
    ) -> None:
        self._contenders = contenders
        self._parameter = parameter
        self._mode = mode
        self._place = place

    def _optimizers(self) -> Mapping[Contender, Any]:
        return {c: c.optimizers[self._parameter] for c in self._contenders if c.failure is None}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the first optimizer, from which the gradient scaler reads the parameters."""
        groups: list[dict[str, Any]] = next(iter(self._optimizers().values())).param_groups
        return groups

    def step(self) -> None:
        """Step each optimizer."""
        for contender, optimizer in self._optimizers().items():
            contender.attempt(self._mode, optimizer.step, self._place())

    def zero_grad(self) -> None:
        """Drop the gradients, as each optimizer would."""
        for optimizer in self._optimizers().values():
            optimizer.zero_grad()
