"""Answers the code of a fake training when it reads a value that depends on fake data.

Most such values (a logged loss, a metric, a NaN guard) change no memory, so no read is refused. A number is 1, and
numbers read one after another fall a little each time, as a loss does. A condition gets the answer that keeps the
training going. Each place is noted once, and the note says whether the program branches there.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from memprof.errors import UsageError
from memprof.scripts.places import caller, decides, place_of

Value = bool | int | float | complex

# Reads in these phases scale an update or ask whether to draw again. Notes name their operators, not their places.
_INSIDE = ("build", "clip", "optimizer")
_FALL = 2.0**-20
MOST_READS = 100_000  # Adafactor reads three for each parameter and step
# Exceptions of torch/_subclasses/fake_tensor.py, which is slow to import.
_DEPENDS_ON_DATA = ("DataDependentOutputException", "DynamicOutputShapeException")
_OF_CUSTOM_OP = "no fake impl registered for <CustomOpDef"  # a RuntimeError of `torch.library.custom_op`
_HAS_NO_KERNEL = ("UnsupportedOperatorException", "NotImplementedError")


class Reads:
    """Answers reads of unknown values.

    Optimizers read norms and step counts to scale an update, which changes no memory. There numbers are assumed to be 1
    and conditions to hold. Initialisers ask whether to draw numbers again (`trunc_normal_`), and the answer is no.
    Anywhere else a condition is assumed to be false, unless it follows from numbers that are 1.

    Args:
        answers: The user's answers by place (`train.py:12`), which take precedence.

    Attributes:
        assumed: The operators whose answer was assumed, with the phase.
        guesses: Sentences about what was predicted as something other than it is.
        unused: The places of answers that were not used.
    """

    def __init__(self, answers: Mapping[str, Value] | None = None) -> None:
        self.assumed: set[tuple[str, str]] = set()
        self.guesses: set[str] = set()
        self.unused = set(answers or ())
        self._answers = dict(answers or {})
        self._counts: Counter[str] = Counter()
        self._last_float = 1.0 + _FALL

    def value(
        self, dtype: torch.dtype, operator: str, module: str, phase: str, expected: bool | int | None = None
    ) -> Value:
        """Return a value for a tensor of one element.

        Args:
            dtype: The type of the tensor.
            operator: The operator that reads it.
            module: The module that runs; "" outside of the model.
            phase: The phase of the training step.
            expected: The value that follows from the numbers from which the tensor was computed; None if none follows.

        Raises:
            UsageError: The code reads so often that it seems to wait for another answer.
        """
        default = _default(dtype, phase, expected)
        if phase in _INSIDE and not self._answers:
            self.assumed.add((operator, phase))
            self._count("", module)
            return default
        frame = caller(sys._getframe(1))
        place = place_of(frame)
        self._count(place, module)
        answer = self._answer(place)
        if answer is not None:
            return bool(answer) if dtype is torch.bool else answer
        if phase in _INSIDE:
            self.assumed.add((operator, phase))
        else:
            if isinstance(default, float) and expected is None:
                default = self._falling()
            branches = frame is not None and decides(frame.f_code.co_filename, frame.f_lineno)
            self.guesses.add(_note(place or _place(module), _default(dtype, phase, expected), branches))
        return default

    def _falling(self) -> float:
        """Return a little less than the last time, as a loss that falls, so that code for a new best value runs."""
        self._last_float = max(0.5, self._last_float - _FALL)
        return self._last_float

    def _count(self, place: str, module: str) -> None:
        self._counts[place] += 1
        if self._counts[place] > MOST_READS:
            where = f"{place} reads" if place else f"{_place(module)} reads"
            hint = f"say what it is with --assume {place}=VALUE" if place else "measure it with --device cpu or cuda"
            raise UsageError(f"{where} values that depend on the data again and again, so it may never end: {hint}")

    def _answer(self, place: str) -> Value | None:
        for name, value in self._answers.items():
            if place == name or place.endswith(f"/{name}"):
                self.unused.discard(name)
                return value
        return None

    def guess(self, module: str, what: str) -> None:
        """Note a guess about a module.

        Args:
            module: The module; "" for the training step.
            what: The rest of the sentence after the module's name.
        """
        place = _place(module)
        self.guesses.add(f"{place[0].upper()}{place[1:]} {what}.")

    def guess_here(self, module: str, what: str) -> None:
        """Note a guess about the line of the user's code that runs.

        Args:
            module: The module to name if the line is not known; "" for the training step.
            what: The rest of the sentence after the place.
        """
        place = place_of(caller(sys._getframe(1))) or _place(module)
        self.guesses.add(f"{place} {what}.")

    @contextmanager
    def explained(self, operator: str, module: str) -> Iterator[None]:
        """Turn an error within the `with` block into one sentence that says why an operator cannot be predicted.

        Args:
            operator: The name of the operator.
            module: The module that runs; "" for the training step.

        Raises:
            UsageError: The operator's output depends on values, or it has no fake kernel.
        """
        try:
            yield
        except Exception as error:
            if type(error).__name__ in _HAS_NO_KERNEL or _OF_CUSTOM_OP in str(error):
                what = f"runs {operator}, which has no fake kernel (torch.library.register_fake gives it one)"
            elif type(error).__name__ in _DEPENDS_ON_DATA:
                what = f"runs {operator}, whose output depends on the data"
            else:
                raise
            raise UsageError(_sentence(what, module)) from error


def _default(dtype: torch.dtype, phase: str, expected: bool | int | None) -> Value:
    if expected is not None:
        return bool(expected) if dtype is torch.bool else type(_one(dtype))(expected)
    return phase in ("clip", "optimizer") if dtype is torch.bool else _one(dtype)


def _one(dtype: torch.dtype) -> int | float:
    return 1.0 if dtype.is_floating_point else 1


def _note(place: str, value: Value, branches: bool) -> str:
    if branches:
        return (
            f"{place} branches on a value that depends on the data: it was taken to be {value} "
            f"(--assume {place}=VALUE sets another)."
        )
    return f"{place} reads a value that depends on the data: it was taken to be {value}."


def _sentence(what: str, module: str) -> str:
    return f"{_place(module)} {what}, so its memory cannot be predicted: measure it with --device cpu or cuda"


def _place(module: str) -> str:
    return f"module {module!r}" if module else "the training step"
